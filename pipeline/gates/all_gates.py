"""The gates in the order in which a candidate meets them, and what all of them say of the present reports."""

from pipeline.gates.baselines import beats_baselines
from pipeline.gates.champion import low_label, old_index, representation
from pipeline.gates.costs import latency_budget, size_budget
from pipeline.gates.data_contract import data_contract
from pipeline.gates.evidence import Evidence
from pipeline.gates.stages import not_collapsed, onnx_parity
from pipeline.gates.verdict import Gate, Verdict, judge, not_judged
from pipeline.workspace import Workspace
from simclr_core.evaluation_reports import CompareReport

GATES: dict[Gate, str] = {
    data_contract: "data/manifest",
    not_collapsed: "models/pretrained",
    onnx_parity: "models/bundle",
    beats_baselines: CompareReport.path,
    representation: CompareReport.path,
    low_label: CompareReport.path,
    latency_budget: CompareReport.path,
    size_budget: CompareReport.path,
    old_index: CompareReport.path,
}
"""What each of them is about: an out of dvc.yaml.

What follows a failed gate does not run. Those of the last stage are all asked, so that a candidate that fails learns
every reason at once; the others save the time of the stages that have no use without them.
"""


def verdicts(workspace: Workspace) -> dict[str, Verdict]:
    """By the name of the gate. Nothing is measured for it: a latency that is not known is not judged.

    After a refused data contract nothing else is asked: no stage has run on these images.
    """
    evidence = Evidence(workspace, measures=False)
    first, *others = GATES
    contract = judge(first, evidence)
    found = {first.__name__: contract}
    if contract.outcome == "refused":
        return found | {gate.__name__: not_judged("not reached") for gate in others}
    return found | {gate.__name__: judge(gate, evidence) for gate in others}
