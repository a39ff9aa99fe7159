from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simclr_core.errors import LabelError
from simclr_core.evaluation.transfer.labeled_set import check, digits, hold_out, open_folder


def write(folder: Path, names: range, shade: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8), (name, shade, 7)).save(folder / f"{name}.png")


def split_set(root: Path, train: int = 3, test: int = 2) -> Path:
    for shade, label in enumerate(("cat", "dog")):
        write(root / "train" / label, range(train), shade)
        write(root / "test" / label, range(100, 100 + test), shade)
    return root


def test_a_set_with_its_own_split_keeps_it(tmp_path: Path) -> None:
    found = check(open_folder("pets", split_set(tmp_path)))
    assert found.classes == ("cat", "dog")
    assert (int((~found.is_test).sum()), int(found.is_test.sum())) == (6, 4)
    assert found.notes == ()


def test_one_folder_is_split_by_content_whatever_the_files_are_called(tmp_path: Path) -> None:
    for shade, label in enumerate(("cat", "dog")):
        write(tmp_path / label, range(60), shade)
    before = open_folder("pets", tmp_path)
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "zzz.png")
    after = open_folder("pets", tmp_path)
    sides = [{key.tobytes(): bool(side) for key, side in zip(x.keys, x.is_test, strict=True)} for x in (before, after)]
    assert sides[0] == sides[1]
    assert 0.08 < before.is_test.mean() < 0.35


def test_a_fifth_is_held_out() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (20_000, 32), np.uint8)
    expected = [int.from_bytes(key[:8].tobytes(), "big") % 5 == 0 for key in keys]
    assert hold_out(keys).tolist() == expected
    assert abs(np.mean(expected) - 0.2) < 0.01


def test_a_copy_of_a_test_image_is_not_trained_on(tmp_path: Path) -> None:
    split_set(tmp_path)
    (tmp_path / "train/cat/copy.png").write_bytes((tmp_path / "test/cat/100.png").read_bytes())
    found = check(open_folder("pets", tmp_path))
    assert int((~found.is_test).sum()) == 6
    assert found.notes == ("left out of training: 1 copy of test images",)


def test_a_file_in_two_classes_is_left_out(tmp_path: Path) -> None:
    split_set(tmp_path)
    (tmp_path / "train/dog/same.png").write_bytes((tmp_path / "train/cat/0.png").read_bytes())
    found = check(open_folder("pets", tmp_path))
    assert int((~found.is_test).sum()) == 5
    assert found.notes == ("left out: 2 files that are in folders of two classes",)


def test_a_folder_without_a_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"no folder .*none"):
        open_folder("pets", tmp_path / "none")
    with pytest.raises(LabelError, match="no images in class folders"):
        open_folder("pets", tmp_path)
    write(tmp_path / "train" / "cat", range(2))
    with pytest.raises(LabelError, match="a folder train and no folder test"):
        open_folder("pets", tmp_path)


def test_one_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "cat", range(30))
    with pytest.raises(LabelError, match="one class, 'cat'"):
        check(open_folder("pets", tmp_path))


def test_a_class_without_test_images_is_refused(tmp_path: Path) -> None:
    write(split_set(tmp_path) / "train" / "bird", range(3), 9)
    with pytest.raises(LabelError, match="pets: 'bird' has no test image"):
        check(open_folder("pets", tmp_path))


def test_one_training_image_of_each_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="'cat', 'dog' have fewer than 2 training images"):
        check(open_folder("pets", split_set(tmp_path, train=1)))


def test_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", range(3))
    root = split_set(tmp_path / "set")
    (root / "train" / "bird").symlink_to(tmp_path / "elsewhere")
    assert open_folder("pets", root).classes == ("cat", "dog")


def test_digits_are_those_of_scikit_learn() -> None:
    found = check(digits())
    assert len(found) == 1797
    assert found.classes == tuple("0123456789")
    assert np.asarray(found.pictures[0]).shape == (8, 8, 3)
    assert max(int(np.asarray(one).max()) for one in found.pictures) == 255
