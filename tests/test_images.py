"""Images are decoded late, and what is no sound image is refused with its place."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from kvwstream.errors import DataError
from kvwstream.images import StoredImage, load_image
from kvwstream.readers import read_examples


def png(size: tuple[int, int] = (8, 6), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG header that promises 60000 x 60000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + png()[33:]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_any_mode_becomes_rgb(mode, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png(mode=mode))
    for source in (path, path.read_bytes()):
        image = load_image(source, "row")
        assert (image.mode, image.size) == ("RGB", (8, 6))
        assert np.asarray(image).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no picture", "cannot be read"),
        (b"", "cannot be read"),
        (png((64, 64))[:60], "is damaged|cannot be read"),
        (bomb(), "60000 x 60000 pixels|exceeds limit"),
    ],
    ids=["text", "empty", "truncated", "bomb"],
)
def test_what_is_no_sound_image_is_refused(data, reason):
    with pytest.raises(DataError, match=f"^row 3: image {len(data)} bytes: .*({reason})"):
        load_image(data, "row 3")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"row: image .*nowhere\.png: no such file"):
        load_image(tmp_path / "nowhere.png", "row")


def rows(folder: Path, *values: dict[str, object]) -> str:
    (folder / "data.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(folder / "data.jsonl")


def test_paths_are_relative_to_the_data(tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.png").write_bytes(png())
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "image"}]},
        {"role": "assistant", "content": "Ann."},
    ]
    source = rows(
        tmp_path,
        {"question": "Who is it?", "answer": "Ann.", "image": "faces/a.png"},
        {"messages": chat, "images": ["faces/a.png"]},
        {"question": "And in text?", "answer": "Bob."},
    )
    one, two, three = read_examples(source)
    assert one.images == two.images == ((tmp_path / "faces" / "a.png").resolve(),)
    assert one.messages[0]["content"][0] == {"type": "image"}
    assert two.messages[0]["content"][1] == {"type": "image"}
    assert three.images == ()
    before = one.digest
    (tmp_path / "faces" / "a.png").write_bytes(png((9, 9)))
    assert read_examples(source)[0].digest != before


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"image": "../secret.png"}, "leaves the folder of the data"),
        ({"image": "/etc/hostname"}, "leaves the folder of the data"),
        ({"image": "faces/b.png"}, "no such file in"),
        ({"image": 7}, "holds no image bytes"),
        ({"image": "a.png", "images": ["a.png"]}, "has both `image` and `images`"),
        ({"images": "a.png"}, "`images` must be a list"),
    ],
)
def test_bad_images_of_rows_are_refused(value, reason, tmp_path):
    source = rows(tmp_path, {"question": "Who?", "answer": "Ann.", **value})
    with pytest.raises(DataError, match=f"data.jsonl:1: .*{reason}"):
        read_examples(source)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (data / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="leaves the folder"):
        read_examples(rows(data, {"question": "Who?", "answer": "Ann.", "image": "a.png"}))


def test_image_parts_and_images_must_agree(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]
    with pytest.raises(DataError, match="1 images for 0 image parts"):
        read_examples(rows(tmp_path, {"messages": chat, "images": ["a.png"]}))


def test_bad_rows_can_be_left_out_and_are_told(tmp_path):
    source = rows(
        tmp_path,
        {"question": "Who?", "answer": "Ann.", "image": "gone.png"},
        {"question": "Who?", "answer": "Bob."},
        {"question": "", "answer": "Bob."},
    )
    bad = []
    (good,) = read_examples(source, on_bad_row=bad.append)
    assert good.answer == "Bob."
    assert [row.place for row in bad] == ["data.jsonl:1", "data.jsonl:3"]
    assert "no such file" in bad[0].reason
    assert "is empty" in bad[1].reason


def test_images_of_a_data_set_stay_in_its_file(tmp_path):
    """Examples of a saved data set hold references, and their digests are those of the bytes."""
    rows = [
        {
            "question": f"What is in picture {n}?",
            "answer": "A dot.",
            "image": {"bytes": png(), "path": None},
        }
        for n in range(3)
    ]
    saved = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    saved.save_to_disk(tmp_path / "saved")
    examples = read_examples(str(tmp_path / "saved"))
    for example in examples:
        (image,) = example.images
        assert isinstance(image, StoredImage)
        assert image.read_bytes() == png()
        assert load_image(image, "here").size == load_image(png(), "here").size
        assert example.digest == replace(example, images=(png(),)).digest
