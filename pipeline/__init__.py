"""From a folder of raw images to an encoder in production: what chains, gates, releases and watches the stages."""

from deploy.moved import keep_old_names

keep_old_names(
    "pipeline",
    {
        "cli": "quarantine_cli:quarantine release_cli:release status demo summary",
        "gates": "paired_test:paired_comparison",
        "ingest": "sources stamps raw",
        "maintenance": "doctor fsck integrity storage",
        "release": "candidate champion registry versions release_facts:facts",
        "retraining": "decide inbox",
        "runs": "launcher instance database output",
        "ui": "services health web web_answers guard",
        "validation": "quarantine",
    },
)
