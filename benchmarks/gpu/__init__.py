"""What ``benchmarks.gpu_check`` looks at: arithmetic, whole runs, and speed. All of it runs on a CPU too."""
