"""The shapes of the server's requests and answers, as the components of its OpenAPI document."""

from typing import Any

from deploy.images.background import BACKGROUNDS, WHITE
from deploy.images.full_depth import MOST_CHANNELS

CHANNELS = "Images have this number of channels, of up to 16 bits; absent: 8-bit RGB."

Schema = dict[str, Any]


def object_of(required: str = "", /, **properties: Schema) -> Schema:
    """Return the schema of an object; ``required`` lists names, separated by spaces."""
    return {"type": "object", "properties": properties} | ({"required": required.split()} if required else {})


def array_of(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


STRING, INTEGER, NUMBER, BOOLEAN = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
BINARY: Schema = {"type": "string", "format": "binary"}
DATA: Schema = {"description": "The values in row-major order, flat or nested.", "type": "array", "items": {}}
ENCODED: Schema = {
    "description": "The file of an image in base64, of either alphabet, or a data URI of it.",
    "type": "string",
    "minLength": 1,
    "pattern": "^(data:[^,]*;base64,)?[A-Za-z0-9+/_%\\s-]+={0,2}\\s*$",
}

RESULTS = {
    "Embed": ("vector", array_of(NUMBER)),
    "Classify": ("classes", array_of(reference("Class"))),
    "Search": ("neighbours", array_of(reference("Neighbor"))),
}
"""Prefix of the schemas of a route → the field of each image's result, and its schema."""

MORE = {
    "Classify": {
        "labels": array_of(STRING)
        | {"description": "Where an image may have several classes: those of at least even probability."}
    }
}
"""Prefix → further fields of some results."""

_STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")

SCHEMAS: Schema = {
    "Error": object_of("error", error=reference("ErrorDetail")),
    "ErrorDetail": object_of("reason message", reason=STRING, message=STRING),
    "ProtocolError": object_of("error", error=STRING),
    "EncodedImage": object_of("b64", b64=ENCODED) | {"additionalProperties": False},
    "ModelReference": object_of("id name version", id=STRING, name=STRING, version=TEXT_OR_NULL),
    "Class": object_of("label probability", label=STRING, probability=NUMBER | {"minimum": 0, "maximum": 1}),
    "Neighbor": object_of("id score", id=STRING, score=NUMBER),
    "EmbeddingsRequest": object_of(
        "model input",
        model=STRING | {"description": "The name of the model, as /v1/models lists it."},
        input={"oneOf": [ENCODED, array_of(ENCODED, minItems=1)]},
        encoding_format=STRING | {"enum": ["float", "base64"], "default": "float"},
        dimensions=INTEGER | {"description": "If given, that of the model."},
        user=STRING,
    )
    | {"additionalProperties": False},
    "EmbeddingsResponse": object_of(
        "object data model usage",
        object=STRING | {"enum": ["list"]},
        data=array_of(reference("Embedding")),
        model=STRING,
        usage=reference("Usage"),
    ),
    "Embedding": object_of(
        "object index embedding",
        object=STRING | {"enum": ["embedding"]},
        index=INTEGER,
        embedding={"oneOf": [array_of(NUMBER), STRING | {"description": "float32, little-endian, in base64."}]},
    ),
    "Usage": object_of("prompt_tokens total_tokens", prompt_tokens=INTEGER, total_tokens=INTEGER)
    | {"description": "Both are the number of images."},
    "OpenAIModels": object_of(
        "object data", object=STRING | {"enum": ["list"]}, data=array_of(reference("OpenAIModel"))
    ),
    "OpenAIModel": object_of(
        "id object created owned_by", id=STRING, object=STRING | {"enum": ["model"]}, created=INTEGER, owned_by=STRING
    ),
    "OpenAIError": object_of("error", error=reference("OpenAIErrorDetail")),
    "OpenAIErrorDetail": object_of(
        "message type param code", message=STRING, type=STRING, param=TEXT_OR_NULL, code=TEXT_OR_NULL
    ),
    "Model": object_of(
        "id name version dim labels preprocessing runtime index limits",
        id=STRING,
        name=STRING,
        version=TEXT_OR_NULL,
        dim=INTEGER,
        labels=array_of(STRING),
        preprocessing=object_of(
            "size resize",
            size=INTEGER,
            resize=INTEGER,
            background=STRING | {"enum": [*BACKGROUNDS], "default": WHITE},
            letterbox=BOOLEAN | {"default": False},
            channels=INTEGER | {"minimum": 1, "maximum": MOST_CHANNELS, "description": CHANNELS},
        ),
        runtime=object_of(
            "threads providers variant reason",
            threads=INTEGER,
            providers=array_of(STRING),
            variant=STRING,
            reason=STRING,
        ),
        index={"oneOf": [reference("IndexFacts"), {"type": "null"}]},
        limits=object_of("body_bytes images pixels", body_bytes=INTEGER, images=INTEGER, pixels=INTEGER),
    )
    | {"description": "Every field of the model's bundle.json, and these.", "additionalProperties": True},
    "IndexFacts": object_of("rows", rows=INTEGER),
    "Document": object_of("openapi") | {"additionalProperties": True},
    "Live": object_of("live", live=BOOLEAN),
    "Ready": object_of("ready", ready=BOOLEAN, candidate=reference("Candidate")),
    "Candidate": object_of(
        "state attempts error", state=STRING | {"enum": ["retrying", "refused"]}, attempts=INTEGER, error=STRING
    )
    | {"description": "The model that CURRENT names, while it cannot be served."},
    "ModelReady": object_of("name ready", name=STRING, ready=BOOLEAN),
    "ServerMetadata": object_of("name version extensions", name=STRING, version=STRING, extensions=array_of(STRING)),
    "ModelMetadata": object_of(
        "name versions platform inputs outputs",
        name=STRING,
        versions=array_of(STRING),
        platform=STRING,
        inputs=array_of(reference("TensorMetadata")),
        outputs=array_of(reference("TensorMetadata")),
    ),
    "TensorMetadata": object_of("name datatype shape", name=STRING, datatype=STRING, shape=array_of(INTEGER)),
    "InferRequest": object_of(
        "inputs",
        id=STRING,
        parameters=reference("Parameters"),
        inputs=array_of(reference("InferInput"), minItems=1, maxItems=1),
        outputs=array_of(reference("RequestedOutput")),
    ),
    "InferInput": object_of(
        "name datatype shape",
        name=STRING | {"enum": ["images"]},
        datatype=STRING | {"enum": ["BYTES", "UINT8", "UINT16"]},
        shape=array_of(INTEGER | {"minimum": 0}, minItems=1),
        parameters=reference("Parameters"),
        data=DATA,
    ),
    "RequestedOutput": object_of(
        "name", name=STRING | {"enum": ["embedding", "probabilities"]}, parameters=reference("Parameters")
    ),
    "InferResponse": object_of(
        "model_name outputs",
        model_name=STRING,
        model_version=STRING,
        id=STRING,
        parameters=reference("Parameters"),
        outputs=array_of(reference("InferOutput")),
    ),
    "InferOutput": object_of(
        "name datatype shape",
        name=STRING,
        datatype=STRING,
        shape=array_of(INTEGER),
        parameters=reference("Parameters"),
        data=array_of({"type": ["number", "null"]}),
    ),
    "Parameters": {"type": "object", "additionalProperties": True},
    "ModelConfig": object_of(
        "name platform backend version_policy max_batch_size input output parameters",
        name=STRING,
        platform=STRING,
        backend=STRING,
        version_policy=reference("Parameters"),
        max_batch_size=INTEGER,
        input=array_of(reference("ConfigTensor")),
        output=array_of(reference("ConfigTensor")),
        parameters=reference("Parameters"),
    ),
    "ConfigTensor": object_of("name data_type dims", name=STRING, data_type=STRING, dims=array_of(INTEGER)),
    "Statistics": object_of("model_stats", model_stats=array_of(reference("ModelStatistics"))),
    "ModelStatistics": object_of(
        "name version last_inference inference_count execution_count inference_stats batch_stats",
        name=STRING,
        version=STRING,
        last_inference=INTEGER | {"description": "Milliseconds since 1970."},
        inference_count=INTEGER,
        execution_count=INTEGER,
        inference_stats=reference("InferenceStatistics"),
        batch_stats=array_of(reference("BatchStatistics")),
    ),
    "InferenceStatistics": object_of(" ".join(_STAGES), **dict.fromkeys(_STAGES, reference("Duration"))),
    "BatchStatistics": object_of(
        "batch_size compute_input compute_infer compute_output",
        batch_size=INTEGER,
        **dict.fromkeys(("compute_input", "compute_infer", "compute_output"), reference("Duration")),
    ),
    "Duration": object_of("count ns", count=INTEGER, ns=INTEGER),
    "RepositoryRequest": object_of(ready=BOOLEAN | {"description": "List only what can be used."}),
    "RepositoryIndex": array_of(reference("RepositoryEntry")),
    "RepositoryEntry": object_of(
        "name state", name=STRING, version=STRING, state=STRING | {"enum": ["READY", "UNAVAILABLE"]}, reason=STRING
    ),
}
