"""The gates in the order in which a candidate meets them, and what all of them say of the present reports."""

from pipeline.gates.champion import low_label, old_index, representation
from pipeline.gates.costs import latency_budget, size_budget
from pipeline.gates.data_contract import data_contract
from pipeline.gates.evidence import Evidence
from pipeline.gates.stages import not_collapsed, onnx_parity, probe_beats_random_init
from pipeline.gates.verdict import Gate, Verdict, judge
from pipeline.workspace import Workspace
from simclr_core.reports import CompareReport

GATES: dict[Gate, str] = {
    data_contract: "data/manifest",
    not_collapsed: "models/pretrained",
    probe_beats_random_init: "models/probe",
    onnx_parity: "models/bundle",
    representation: CompareReport.path,
    low_label: CompareReport.path,
    latency_budget: CompareReport.path,
    size_budget: CompareReport.path,
    old_index: CompareReport.path,
}
"""What each of them is about: an out of dvc.yaml."""


def verdicts(workspace: Workspace) -> dict[str, Verdict]:
    """By the name of the gate. Nothing is measured for it: a latency that is not known is not judged."""
    evidence = Evidence(workspace, measures=False)
    return {gate.__name__: judge(gate, evidence) for gate in GATES}
