"""The plain server that a programmer writes around a bundle in ten minutes, to compare with ``simclr-deploy serve``.

Needs FastAPI, which this project does not: ``python fastapi_peer.py BUNDLE PORT``. The same decoding, the same model in
the same onnxruntime with the same threads; each request in one of the framework's threads, without limits or a queue.
"""

import json
import sys
from pathlib import Path

import uvicorn
from fastapi import Body, FastAPI, Response

import deploy

app = FastAPI()
encoder = deploy.load(Path(sys.argv[1]))


def embed(image: bytes = Body(media_type="image/jpeg")) -> Response:
    vector = encoder.embed(image).vectors[0]
    return Response(json.dumps({"vector": vector.tolist()}), media_type="application/json")


app.add_api_route("/v1/embed", embed, methods=["POST"])

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False)
