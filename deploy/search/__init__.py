"""Find similar images: an index of embeddings, exact and approximate search, few-shot classification, exports.

These modules use vectors and the id of an encoder. They do not decode images or use HTTP.
"""
