"""`simclr-deploy serve`: an encoder behind HTTP, with the extra `serve` (Starlette and uvicorn).

A request passes through the modules in this order:

    transport/      sockets, connections within limits of number and time, TLS and tokens
    middleware.py   token, web pages of other origins, log line, metrics
    app.py          routes
    service.py      from the body of a request to its results
    limits.py       limits on size and time, and whether the request may wait
    bodies.py       receives a body, undoes its encoding, extracts the images
    engine.py       decoding threads and inference threads
    models.py       the current model, and its replacement when the registry's CURRENT changes
    trust.py        whether a trusted key still vouches for the current model
    inference.py    the routes of the Open Inference Protocol v2
    openai.py       the routes in the shape of OpenAI's API
    repository.py   Triton's routes: configuration, statistics, index of the repository
    background.py   threads that continue whatever happens in them
    metrics.py openapi.py page.html

How an image is decoded, embedded or searched for does not belong here: it is the same without HTTP.
"""
