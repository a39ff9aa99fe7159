"""The sample of the demo: 10,000 pictures of Fashion-MNIST, and how they were chosen."""
