"""Each way to choose, compared with a slow one written from the paper; ties, copies, groups, and too few images."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from simclr_core.suggest import typical
from simclr_core.suggest.diverse import spread_out
from simclr_core.suggest.mistakes import confidence_thresholds, suspect
from simclr_core.suggest.pool import first_of_each, scale_rows
from simclr_core.suggest.ranked import margins, novelties
from simclr_core.suggest.typical import divide, mean_distances, most_typical

Features = NDArray[np.float32]


def directions(count: int, dim: int = 6, seed: int = 0) -> Features:
    return scale_rows(np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32))


def islands(sizes: tuple[int, ...], spread: float = 0.05) -> tuple[Features, NDArray[np.int64]]:
    """Features around orthogonal directions, and which of them each is near."""
    of = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(1).normal(scale=spread, size=(len(of), len(sizes) + 2))
    noise[np.arange(len(of)), of] += 1
    return scale_rows(noise.astype(np.float32)), of


def none(count: int) -> NDArray[np.bool_]:
    return np.zeros(count, bool)


def some(count: int, *labeled: int) -> NDArray[np.bool_]:
    found = none(count)
    found[list(labeled)] = True
    return found


def alone(count: int) -> NDArray[np.int64]:
    return np.arange(count)


class TestTypical:
    def test_each_island_gives_its_most_typical_image_the_largest_first(self) -> None:
        features, of = islands((30, 10, 20))
        found = most_typical(features, none(60), alone(60), 3)
        assert of[found.positions].tolist() == [0, 2, 1]
        assert found.sizes.tolist() == [30, 20, 10]
        for position in found.positions:
            members = np.flatnonzero(of == of[position])
            assert position == members[np.argmin([slow_mean_distance(features, one, members) for one in members])]

    def test_islands_with_labels_are_asked_last(self) -> None:
        """Of three clusters, for a label and two that are asked for, two have no label."""
        features, of = islands((30, 10, 20))
        found = most_typical(features, some(60, 0), alone(60), 2)
        assert of[found.positions].tolist() == [2, 1]
        again = most_typical(features, some(60, 0, 35, 45, 46), alone(60), 1)
        assert again.labels.tolist() == [0]  # an island is divided, for there are more labels than islands

    def test_islands_take_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        features, of = islands((30, 10, 20))
        monkeypatch.setattr(typical, "MOST_CLUSTERS", 3)
        found = most_typical(features, none(60), alone(60), 7)
        assert of[found.positions].tolist() == [0, 2, 1, 0, 2, 1, 0]

    def test_a_few_images_far_from_all_others_come_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        features, of = islands((30, 4, 20))
        monkeypatch.setattr(typical, "MOST_CLUSTERS", 3)
        found = most_typical(features, none(54), alone(54), 54)
        assert (of[found.positions[-4:]] == 1).all()
        assert sorted(found.positions.tolist()) == list(range(54))

    def test_a_group_gives_one_image(self) -> None:
        features, of = islands((30, 10, 20))
        found = most_typical(features, none(60), of, 10)
        assert sorted(of[found.positions].tolist()) == [0, 1, 2]

    @pytest.mark.parametrize("bank", [5_000, 7])
    def test_mean_distances_are_those_of_the_nearest_neighbors(
        self, monkeypatch: pytest.MonkeyPatch, bank: int
    ) -> None:
        features = directions(40)
        monkeypatch.setattr(typical, "BANK", bank)
        monkeypatch.setattr(typical, "NEIGHBORS", 3)
        members = np.arange(5, 35)
        looked_at = members[:: -(-30 // bank)]
        found = mean_distances(features, members)
        expected = [slow_mean_distance(features, one, looked_at, 3, bank < 30) for one in members]
        np.testing.assert_allclose(found, expected, atol=1e-3)

    def test_equal_images_are_one_cluster_in_the_order_of_their_positions(self) -> None:
        features = np.tile(directions(1), (9, 1))
        assert most_typical(features, none(9), alone(9), 4).positions.tolist() == [0, 1, 2, 3]

    def test_many_images_are_divided_by_some_of_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        features, of = islands((30, 10, 20))
        monkeypatch.setattr(typical, "FITTED", 20)
        clusters = divide(features, 3)
        assert len(np.unique(clusters)) == 3
        assert len(set(zip(of.tolist(), clusters.tolist(), strict=True))) == 3

    def test_it_is_the_same_again(self) -> None:
        features = directions(200)
        first, again = (most_typical(features, some(200, 3, 5), alone(200), 20) for _ in range(2))
        assert first.positions.tolist() == again.positions.tolist()


def slow_mean_distance(
    features: Features, one: int, members: NDArray[np.int64], count: int = 20, with_itself: bool = False
) -> float:
    """To the nearest others; of a bank that is a sample, the nearest member of it does not count."""
    distances = sorted(float(np.linalg.norm(features[one] - features[other])) for other in members)
    return float(np.mean(distances[1 : count + 1])) if with_itself or one in members else float(np.mean(distances))


class TestDiverse:
    @pytest.mark.parametrize("labeled", [(), (4,), (0, 7, 19)])
    def test_each_is_the_farthest_from_all_before_it(self, labeled: tuple[int, ...]) -> None:
        features = directions(30)
        found = spread_out(features, some(30, *labeled), alone(30), 8)
        centers = list(labeled) or [int(found.positions[0])]
        if not labeled:
            cosines = features @ features.mean(axis=0)
            assert centers == [int(cosines.argmax())]
        for position, distance in list(zip(found.positions, found.distances, strict=True))[not labeled :]:
            gaps = [min(1 - float(features[one] @ features[center]) for center in centers) for one in range(30)]
            assert gaps[position] == pytest.approx(max(gaps), abs=1e-6)
            assert distance == pytest.approx(max(gaps), abs=1e-6)
            centers.append(int(position))

    def test_no_image_is_farther_than_twice_the_least_radius(self) -> None:
        features = directions(12, dim=2)
        found = spread_out(features, none(12), alone(12), 3).positions
        angles = np.arccos(np.clip(features @ features.T, -1, 1))  # a metric, and of the same order as 1 - cosine
        radius = angles[:, found].min(axis=1).max()
        least = min(angles[:, list(centers)].min(axis=1).max() for centers in product(range(12), repeat=3))
        assert radius <= 2 * least + 1e-6

    def test_a_copy_of_a_labeled_image_comes_last(self) -> None:
        features = directions(10)
        features[6] = features[2]
        found = spread_out(features, some(10, 2), alone(10), 20)
        assert found.positions[-1] == 6
        assert sorted(found.positions.tolist()) == [0, 1, 3, 4, 5, 6, 7, 8, 9]

    def test_a_group_gives_one_image(self) -> None:
        groups = np.arange(10) // 2
        found = spread_out(directions(10), none(10), groups, 10)
        assert sorted(groups[found.positions].tolist()) == [0, 1, 2, 3, 4]

    def test_equal_images_are_chosen_by_position(self) -> None:
        features = np.tile(directions(1), (5, 1))
        assert spread_out(features, none(5), alone(5), 3).positions.tolist() == [0, 1, 2]


class TestRanked:
    def test_margin_is_between_the_two_surest_classes(self) -> None:
        likely = np.random.default_rng(0).dirichlet(np.ones(4), size=20)
        expected = [row[0] - row[1] for row in np.sort(likely)[:, ::-1]]
        np.testing.assert_allclose(margins(likely), expected)

    @pytest.mark.parametrize("labeled", [(), (1,), (0, 3, 4, 6, 7, 11)])
    def test_novelty_is_the_distance_to_the_fifth_nearest(self, labeled: tuple[int, ...]) -> None:
        features = directions(12)
        found = novelties(features, some(12, *labeled))
        for one in range(12):
            others = labeled or [other for other in range(12) if other != one]
            distances = sorted(1 - float(features[one] @ features[other]) for other in others)
            assert found[one] == pytest.approx(distances[min(5, len(distances)) - 1], abs=1e-6)

    def test_fewer_than_are_asked_for(self) -> None:
        assert first_of_each([2, 0], alone(3), 5).tolist() == [2, 0]
        assert first_of_each([], alone(0), 5).tolist() == []


class TestMistakes:
    def test_the_confident_joint_is_that_of_the_paper(self) -> None:
        draw = np.random.default_rng(2)
        labels = draw.integers(0, 3, 60)
        likely = draw.dirichlet(np.ones(3), size=60)
        expected = slow_suspects(likely, labels)
        found = suspect(likely, labels)
        assert list(zip(found.positions.tolist(), found.likely.tolist(), strict=True)) == expected
        assert expected

    def test_a_flipped_label_is_found_first(self) -> None:
        labels = np.repeat([0, 1, 2], 20)
        likely = np.full((60, 3), 0.1)
        likely[np.arange(60), labels] = 0.8
        labels[[5, 33]] = [2, 0]
        found = suspect(likely, labels)
        assert sorted(found.positions.tolist()) == [5, 33]
        assert found.likely.tolist() == [0, 1]

    def test_of_a_difficult_class_not_everything_is_suspected(self) -> None:
        """The probe gives images of class 1 a quarter on average, and class 0 half: no reason to doubt a label."""
        labels = np.repeat([0, 1], 20)
        likely = np.tile([0.9, 0.1], (40, 1))
        likely[20:] = [0.6, 0.4]
        assert confidence_thresholds(likely, labels).tolist() == [pytest.approx(0.9), pytest.approx(0.4)]
        assert not len(suspect(likely, labels).positions)

    def test_equally_suspicious_labels_stay_in_order(self) -> None:
        labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
        likely = np.array([[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3 + [[0.9, 0.1], [0.1, 0.9]])
        assert suspect(likely, labels).positions.tolist() == [6, 7]

    def test_a_class_without_labels_is_never_likely(self) -> None:
        likely = np.array([[0.2, 0.1, 0.7], [0.1, 0.2, 0.7]])
        assert not len(suspect(likely, np.array([0, 1])).positions)

    def test_without_labels_nothing_is_suspected(self) -> None:
        assert not len(suspect(np.empty((0, 3)), np.empty(0, np.int64)).positions)


def slow_suspects(likely: NDArray[np.float64], labels: NDArray[np.int64]) -> list[tuple[int, int]]:
    classes = likely.shape[1]
    thresholds = [
        np.mean([row[one] for row, label in zip(likely, labels, strict=True) if label == one]) for one in range(classes)
    ]
    found = []
    for position, (row, label) in enumerate(zip(likely, labels, strict=True)):
        confident = [one for one in range(classes) if row[one] >= thresholds[one]]
        if confident and (best := max(confident, key=lambda one: row[one])) != label:
            found.append((row[label] - row[best], position, best))
    return [(position, best) for _, position, best in sorted(found)]
