"""Where tokenizer and embeddings come from: causal LMs, GGUF files, static embedding models."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ir3de import IR3DEModel
from ir3de.scripts.cli import main
from ir3de.scripts.data.sources import gguf_of, load_source

from . import tiny


def model2vec(folder: Path, **tensors: torch.Tensor) -> str:
    """A folder as model2vec saves it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "architectures": ["StaticModel"]}))
    tiny.tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    save_file(tensors or {"embeddings": tiny.embeddings()}, folder / "model.safetensors")
    return str(folder)


def fit(source: str, data: Path, output: Path) -> int:
    options = ["--variant", "prompt", "--feature-map", "unit"]
    return main(["fit", "--data", str(data), "--embeddings", source, "--output", str(output), *options])


def check_routes(folder: Path) -> None:
    model = IR3DEModel.from_pretrained(folder)
    p = model.recognise(["debug the python function", "the court and a judge", "the sum of an angle"])
    assert [model.config.domain_names[i] for i in p.argmax(dim=1)] == ["code", "law", "math"]


def test_a_router_is_fitted_to_a_folder_of_model2vec(json_lines: Path, tmp_path: Path) -> None:
    source = model2vec(tmp_path / "static")
    tokenizer, embeddings = load_source(source)
    assert torch.equal(embeddings, tiny.embeddings())
    assert tokenizer("court zebra", add_special_tokens=False)["input_ids"] == tiny.token_ids("court zebra")
    assert fit(source, json_lines, tmp_path / "router") == 0
    check_routes(tmp_path / "router")


def test_a_router_is_fitted_to_a_static_embedding_of_sentence_transformers(json_lines: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is an extra")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    module = StaticEmbedding(tiny.tokenizer().backend_tokenizer, embedding_weights=tiny.embeddings())
    SentenceTransformer(modules=[module], device="cpu").save(str(tmp_path / "static"))
    assert torch.equal(load_source(str(tmp_path / "static"))[1], tiny.embeddings())
    assert fit(str(tmp_path / "static"), json_lines, tmp_path / "router") == 0
    check_routes(tmp_path / "router")


def test_rows_that_tokens_share_and_weights_are_folded_in(tmp_path: Path) -> None:
    number = len(tiny.TOKENS)
    mapping = torch.arange(number) // 2
    weights = torch.linspace(0.5, 2, number)
    few = torch.randn(number // 2 + 1, 4, generator=torch.Generator().manual_seed(0)).half()
    source = model2vec(tmp_path / "static", embeddings=few, mapping=mapping, weights=weights)
    for token, row in enumerate(load_source(source)[1]):
        assert torch.equal(row, few[token // 2].float() * weights[token])


def test_a_static_model_that_lacks_something_is_named(tmp_path: Path) -> None:
    source = model2vec(tmp_path / "static")
    (tmp_path / "static" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"static embedding model without tokenizer: it has no tokenizer\.json"):
        load_source(source)
    with pytest.raises(ValueError, match=r"holds \['other'\], and neither 'embedding.weight' nor 'embeddings'"):
        load_source(model2vec(tmp_path / "static", other=tiny.embeddings()))
    (tmp_path / "static" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="without embeddings in safetensors"):
        load_source(source)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.ones(len(tiny.TOKENS), 8), "are all alike"),
        (torch.zeros(len(tiny.TOKENS), 8), "are all alike"),
        (torch.full((len(tiny.TOKENS), 8), torch.nan), "NaN or infinity"),
    ],
)
def test_embeddings_that_tell_nothing_apart_are_refused(table: torch.Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_source(model2vec(tmp_path / "static", embeddings=table))


def test_the_gguf_file_of_a_folder_is_found_or_named(tmp_path: Path) -> None:
    assert gguf_of("absent/model") is None
    assert gguf_of(str(tmp_path)) is None
    (tmp_path / "a.gguf").touch()
    assert gguf_of(str(tmp_path)) == "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ValueError, match=r"name one of a\.gguf, b\.gguf with --gguf-file"):
        gguf_of(str(tmp_path))
    (tmp_path / "config.json").touch()
    assert gguf_of(str(tmp_path)) is None


def test_a_folder_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder \./absent"):
        load_source("./absent")
    with pytest.raises(OSError, match="There is no folder absent/llm, and it cannot be loaded from the Hub"):
        load_source("absent/llm")


def test_a_router_is_no_source_of_embeddings(
    json_lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.router(embedding_model="org/llm").save_pretrained(tmp_path / "router")
    assert fit(str(tmp_path / "router"), json_lines, tmp_path / "other") == 2
    said = capsys.readouterr().err
    assert "router is a router, not a language model: give the model that it was made of, org/llm." in said
    assert not (tmp_path / "other").exists()
