"""What was right, missed and wrong of each class, counted as scikit-learn counts it."""

import numpy as np
from sklearn.metrics import multilabel_confusion_matrix

from simclr_core.evaluation.multi_label.results import decisions
from simclr_core.evaluation.scores.classification import of_class


def test_the_confusion_matrix_holds_that_of_each_class() -> None:
    random = np.random.default_rng(0)
    truth, said = (random.random((200, 4)) < share for share in (0.4, (0.5, 0.2, 0.0, 0.9)))
    actual, predicted = decisions(truth, said)
    matrix = np.zeros((5, 5), int)
    np.add.at(matrix, (actual, predicted), 1)
    for number, ((_, wrong), (missed, right)) in enumerate(multilabel_confusion_matrix(truth, said)):
        assert (matrix[number, number], matrix[number, 4], matrix[4, number]) == (right, missed, wrong)
        one = of_class(said[:, number].astype(float), truth[:, number], said[:, number], 0)
        assert one.right is not None
        assert (one.right, one.images - one.right, one.answers - one.right) == (right, missed, wrong)
    assert matrix.sum() == (truth | said).sum(), "no class is taken for another"


def test_without_an_answer_and_without_a_label_there_is_no_decision() -> None:
    nothing = np.zeros((3, 2), bool)
    assert [len(one) for one in decisions(nothing, nothing)] == [0, 0]
