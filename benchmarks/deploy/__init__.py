"""The deployed encoder, its search and its server, next to fastembed, hnswlib, faiss and FastAPI."""
