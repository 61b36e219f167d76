"""Pictures, texts and closed answers on their way into OFA: what comes out, and what is refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from exitwise.errors import InputError
from exitwise.models.ofa import OFAProcessor, Trie, train_tokenizer
from exitwise.models.ofa.images import nearest_grid, open_image, pixels

TEXTS = ["What does the image describe?", "there is a black dog", "true or false?", "yes, true", "no, false", "black and blue"] * 9


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 330, codes=2, bins=3)


@pytest.fixture(scope="module")
def processor(tokenizer: Any) -> OFAProcessor:
    return OFAProcessor(tokenizer, image_grids=[[2, 3], [3, 2], [2, 2]], stride=32, max_length=12)


def photo(width: int = 60, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_text_is_lower_case_with_a_leading_space_between_bos_and_eos(processor: OFAProcessor, tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    one, other = processor(text="There is a DOG"), processor(text="  there is a dog ")
    assert torch.equal(one["input_ids"], other["input_ids"])
    ids = one["input_ids"][0].tolist()
    assert ids[0] == 0 and ids[-1] == 2 and tokenizer.decode(ids[1:-1]) == " there is a dog"


def test_any_text_comes_back_from_its_bytes(tokenizer: Any) -> None:
    for text in ("naïve café, 5 €", "日本", "tab\there"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == " " + text


def test_code_and_place_tokens_are_one_token_each(tokenizer: Any) -> None:
    ids = tokenizer("<code_1><bin_0><bin_2>", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<code_1>", "<bin_0>", "<bin_2>"]
    assert len(tokenizer) == max(ids) + 1


def test_batches_are_padded_and_masked(processor: OFAProcessor) -> None:
    out = processor(images=[photo(), photo()], text=["true", "there is a black dog"])
    assert out["pixel_values"].shape == (2, 3, 64, 96) and out["pixel_values"].dtype == torch.float32
    assert (out["input_ids"][0] == 1).tolist() == (out["attention_mask"][0] == 0).tolist()
    assert out["attention_mask"][1].all() and not out["attention_mask"][0].all()


def test_the_grid_nearest_in_aspect_is_taken() -> None:
    grids = [[2, 3], [3, 2], [2, 2]]
    assert nearest_grid(300, 200, grids) == (2, 3)
    assert nearest_grid(200, 300, grids) == (3, 2)
    assert nearest_grid(1000, 100, grids) == (2, 3)
    assert nearest_grid(122, 100, grids) == (2, 2)  # ln 1.22 = .199 is nearer to 0 than to ln 1.5 = .405
    assert nearest_grid(123, 100, grids) == (2, 3)  # ln 1.23 = .207


def test_images_that_fall_apart_need_a_common_grid(processor: OFAProcessor) -> None:
    with pytest.raises(InputError, match=r"different grids.*grid=\[rows, columns\]"):
        processor(images=[photo(60, 40), photo(40, 60)])
    assert processor(images=[photo(60, 40), photo(40, 60)], grid=[2, 2])["pixel_values"].shape == (2, 3, 64, 64)


def test_values_run_from_minus_one_to_one() -> None:
    image = Image.fromarray(np.array([[[0, 255, 51]]], dtype=np.uint8))
    assert pixels(image, 1, 1, 2)[:, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -0.6])


def rgb(image: Any) -> list[int]:
    return list(open_image(image, "image 0").getpixel((0, 0)))  # type: ignore[arg-type]


def test_every_kind_of_picture_becomes_rgb() -> None:
    assert rgb(Image.new("L", (2, 2), 80)) == [80, 80, 80]
    assert rgb(Image.new("RGBA", (2, 2), (200, 10, 10, 0))) == [255, 255, 255]  # fully clear lies on white
    assert rgb(Image.new("RGBA", (2, 2), (200, 10, 20, 255))) == [200, 10, 20]
    assert rgb(Image.new("LA", (2, 2), (80, 255))) == [80, 80, 80]
    assert rgb(Image.new("1", (2, 2), 1)) == [255, 255, 255]
    assert rgb(Image.new("CMYK", (2, 2), (0, 0, 0, 0))) == [255, 255, 255]
    assert rgb(Image.new("I;16", (2, 2), 257 * 80)) == [80, 80, 80]
    assert rgb(Image.new("I;16", (2, 2), 200)) == [1, 1, 1]  # nearly black, though it would fit into 8 bits
    assert rgb(Image.new("I", (2, 2), 257 * 80)) == [80, 80, 80]
    assert rgb(np.full((2, 2), 257 * 80, dtype=np.uint16)) == [80, 80, 80]
    assert rgb(np.full((3, 4, 5), 0.2, dtype=np.float32)) == [51, 51, 51]
    assert rgb(torch.full((3, 4, 5), 9, dtype=torch.uint8)) == [9, 9, 9]
    assert rgb(np.ones((4, 5), dtype=bool)) == [255, 255, 255]


def test_a_16_bit_png_is_not_white(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)).save(path)
    assert rgb(path) == [100, 100, 100]


def test_a_turned_photo_is_set_upright() -> None:
    image, data, exif = Image.new("RGB", (6, 4)), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image.save(data, "JPEG", exif=exif)
    assert open_image(Image.open(data), "image 0").size == (4, 6)


def test_bad_pictures_are_named(processor: OFAProcessor, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(whole)
    cut, text = tmp_path / "cut.jpg", tmp_path / "text.png"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    text.write_text("not a picture")
    for bad, said in (
        (cut, r"image 1 .*cut\.jpg.*truncated"),
        (text, r"image 1 .*text\.png.*not an image"),
        (tmp_path / "none.png", r"image 1 .*none\.png.*does not exist"),
        (Image.new("RGB", (0, 5)), "image 1 has size 0 x 5"),
        (np.zeros((0, 5, 3), dtype=np.uint8), r"image 1 .*\(0, 5, 3\).*at least one pixel"),
        (np.zeros((5, 5, 2), dtype=np.uint8), r"image 1 .*\(5, 5, 2\).*1, 3 or 4 channels"),
        (np.full((5, 5), 1.5), "image 1 .*0..1"),
        (np.full((5, 5), 300), r"image 1 .*0\.\.255"),
        (7, "image 1 is a int"),
    ):
        with pytest.raises(InputError, match=said):
            processor(images=[whole, bad], grid=[2, 2])
    with Image.open(cut) as opened, pytest.raises(InputError, match="cannot be decoded"):
        processor(images=opened)
    assert processor(images=whole)["pixel_values"].shape == (1, 3, 64, 64)


def test_bad_texts_are_named(processor: OFAProcessor) -> None:
    for text, said in (
        (["true", "  "], "text 1 is empty"),
        ("", "text 0 is empty"),
        (["true", "black dog " * 9], r"text 1 has \d+ tokens.*at most 10"),
        ([], "list of texts is empty"),
        (["true", 5], "text 1 is a int"),
    ):
        with pytest.raises(InputError, match=said):
            processor(text=text)
    with pytest.raises(InputError, match="neither images nor text"):
        processor()
    with pytest.raises(InputError, match="1 images and 2 texts"):
        processor(images=photo(), text=["true", "false"])
    with pytest.raises(InputError, match="list of images is empty"):
        processor(images=[])


def test_decoder_prompts_end_together_and_need_a_mask_only_when_padded(processor: OFAProcessor) -> None:
    out = processor.decoder_prompts(["true", "there is a black dog"])
    ids, mask = out["decoder_input_ids"], out["decoder_attention_mask"]
    start = int((mask[0] == 0).sum())
    assert start > 0 and ids[0, start] == 0 and ids[1, 0] == 0 and (ids[0, :start] == 1).all()
    assert not (ids == 2).any()
    assert list(processor.decoder_prompts(["true"])) == ["decoder_input_ids"]


def test_saved_and_loaded_it_is_the_same_processor(processor: OFAProcessor, tiny_ofa: Any, tmp_path: Path) -> None:
    tiny_ofa().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for loaded in (OFAProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is OFAProcessor
        assert (loaded.image_grids, loaded.stride, loaded.max_length) == ([[2, 3], [3, 2], [2, 2]], 32, 12)
        inputs = {"images": photo(), "text": "true <bin_1> dog"}
        for name, value in processor(**inputs).items():
            assert torch.equal(loaded(**inputs)[name], value)


def test_the_trie_allows_exactly_the_answers(tokenizer: Any) -> None:
    trie = Trie(["true", "true dog", "false"], tokenizer)
    found, open_ = set(), [()]
    while open_:
        said = open_.pop()
        for token in trie.allowed(said):
            open_.append((*said, token)) if token != 2 else found.add((*said, token))
    assert found == set(trie.paths.values()) and len(found) == 3
    assert trie.allowed((*trie.paths["true"],)) == [2] == trie.allowed((59, 58))
    assert trie.longest() == max(map(len, found))
    for bad in ([], ["true", " "]):
        with pytest.raises(InputError, match="at least one"):
            Trie(bad, tokenizer)


def test_first_tokens_tell_answers_apart_or_say_so(tokenizer: Any) -> None:
    found = Trie(["true", "false"], tokenizer).first_tokens()
    assert found is not None and found[0] == ["true", "false"] and len(set(found[1].tolist())) == 2
    assert Trie(["true", "true dog"], tokenizer).first_tokens() is None


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_says_only_listed_answers(processor: OFAProcessor, tokenizer: Any, tiny_ofa: Any, beams: int) -> None:
    """Behind decoder prompts of different lengths; without the trie the model says something else."""
    answers = ["true", "false", "black dog", "black and blue"]
    trie, texts = Trie(answers, tokenizer), ["there is a dog", "true or false?", "black"]
    said = set()
    for seed in range(4):
        model = tiny_ofa(seed=seed, vocab_size=len(tokenizer))
        prompts = processor.decoder_prompts(texts)
        length = prompts["decoder_input_ids"].shape[1]
        inputs = {**processor(images=[photo()] * 3, text=texts), **prompts, "num_beams": beams, "do_sample": False}
        free = model.generate(**inputs, max_new_tokens=4)[:, length:]
        assert not set(tokenizer.batch_decode(free, skip_special_tokens=True)) <= {" " + answer for answer in answers}
        held = model.generate(**inputs, max_new_tokens=trie.longest(), prefix_allowed_tokens_fn=trie.prefix_allowed_tokens_fn(length))[
            :, length:
        ]
        said |= {text.strip() for text in tokenizer.batch_decode(held, skip_special_tokens=True)}
    assert said <= set(answers) and len(said) > 1
