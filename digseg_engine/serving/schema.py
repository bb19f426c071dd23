"""What goes in and out, for the checks of requests and for OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

BINARY = {"type": "string", "format": "binary"}
Prompt = Annotated[str, Field(min_length=1, max_length=4096)]


class EncodeRequest(BaseModel):
    """A picture to keep. `image`: the file's bytes, as base64 in JSON."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(None, description="the picture file's bytes as base64")
    name: str | None = Field(None, max_length=1000, description="the picture file's name, for messages and results")
    model: str | None = Field(
        None, description="name of a model that /v1/models lists; the first one where none is named"
    )
    size: int | None = Field(
        None, ge=8, description="pixels of the longer side to work at; the model's own where none is given"
    )


class SegmentRequest(EncodeRequest):
    """A question about a picture (`image`) or about one that was encoded before (`encoding`)."""

    encoding: str | None = Field(None, description="what /v1/encode answered as `id`, in place of a picture")
    prompts: list[Prompt] | None = Field(
        None, description="what to find; a model with a fixed vocabulary answers all of it where none is given"
    )
    against: list[Prompt] = Field([], description="contrast prompts: they compete for pixels and are not returned")
    threshold: float = Field(0.5, ge=1e-6, le=1 - 1e-6, description="probability from which a pixel belongs to a mask")
    all_prompts: bool = Field(
        False, description="make masks also for prompts that the model says are not in the picture"
    )
    output: Literal["rle", "png", "polygons", "none"] = Field("rle", description="form of the masks")


class EncodingMade(BaseModel):
    """`seconds`: of each stage. The encoding is kept for `keeps` seconds after it was last asked about, memory permitting."""

    id: str
    model: str
    picture: str | None
    width: int
    height: int
    working_size: int
    bytes: int
    keeps: float
    seconds: dict[str, float]
    notes: list[str]


class RunLengths(BaseModel):
    """COCO's compressed run lengths; `size` is [height, width]."""

    size: tuple[int, int]
    counts: str


class Mask(BaseModel):
    """The answer about one prompt. `there` and `presence`: whether, and how probably, it is in the picture at all; `score`: mean
    probability inside the mask; `area`: share of the picture; `box`: [left, top, right, bottom]."""

    prompt: str
    label: int
    found: bool
    area: float
    pixels: int
    score: float | None
    box: tuple[int, int, int, int] | None
    there: bool
    presence: float | None
    rle: RunLengths | None = None
    png: str | None = Field(None, description="base64 of a grey PNG, 255 inside")
    polygons: list[list[list[tuple[float, float]]]] | None = Field(
        None, description="polygons, each its outline and then its holes"
    )


class Answer(BaseModel):
    """`digseg.result/1`, with the masks in the form that was asked for."""

    model_config = ConfigDict(extra="allow")

    format: Literal["digseg.result/1"]
    version: str
    picture: str | None
    width: int
    height: int
    model: dict[str, str]
    backend: str
    working_size: int
    threshold: float
    seconds: dict[str, float]
    notes: list[str]
    masks: list[Mask]
    output: str


class Model(BaseModel):
    """`vocabulary`: the names that a model with a fixed vocabulary answers for, null for one that takes any prompt."""

    name: str
    sha256: str
    backend: str
    working_size: int
    vocabulary: list[str] | None


class Served(BaseModel):
    """What this server has, the most it takes, and the colours that its page and overlays give to masks."""

    version: str
    models: list[Model]
    limits: dict[str, float]
    palette: list[tuple[int, int, int]]


class Told(BaseModel):
    """`code` is for programs, `message` for people."""

    status: int
    code: str
    message: str


class Failed(BaseModel):
    """Every error has this shape."""

    error: Told


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of a body that comes as JSON or as a form whose `image` is a file; lists are repeated fields."""
    needed = [["image"], ["encoding"]] if "encoding" in model.model_fields else [["image"]]
    pictures = {"anyOf": [{"required": names} for names in needed]}
    as_json = {**model.model_json_schema(), **pictures}
    fields = {**as_json["properties"], "image": {**BINARY, "description": "the picture file"}}
    fields.pop("name")  # a file has one
    plain = {name: _plain(field) for name, field in fields.items()}
    form = {"type": "object", "properties": plain, "additionalProperties": False, **pictures}
    content = {"application/json": {"schema": as_json}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """A form has no null: what may be left out is left out."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
    rest = {key: value for key, value in field.items() if key not in ("anyOf", "default")}
    return {**rest, **kinds[0]} if kinds else rest
