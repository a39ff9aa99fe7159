"""`simclr-deploy serve`: an encoder behind HTTP, with the extra `serve` (Starlette and uvicorn).

A request, in the order in which it meets the modules:

    connection.py   bytes of a client, and how long they may take; graceful end
    app.py          routes, token, log line, metrics
    limits.py       how much may be sent, and whether the request may wait
    requests.py     images out of a body
    engine.py       decoding threads and the inference thread
    models.py       the encoder that serves, and its replacement by the registry's CURRENT
    inference.py    the Open Inference Protocol v2 instead of our own routes
    metrics.py openapi.py page.html
"""
