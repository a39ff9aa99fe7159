"""Similar images: an index over embeddings, exact and approximate search, few-shot classification, exports.

Works on vectors and on an encoder's identity. Nothing here decodes an image or speaks HTTP.
"""
