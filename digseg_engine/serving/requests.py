"""A request's body to a checked question: JSON with base64, or a form with a file."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from digseg_engine.serving.limits import Limits
from digseg_engine.serving.problems import RequestError, malformed, too_many_prompts
from digseg_engine.serving.schema import EncodeRequest
from digseg_engine.serving.uploads import Upload

LISTS = ("prompts", "against")
FIELDS = 10_000  # of a form: more prompts than any server takes, so that it is ours to say how many it does
Asked = TypeVar("Asked", bound=EncodeRequest)


async def read(request: Request, kind: type[Asked], limits: Limits) -> tuple[Asked, Upload | None]:
    """The question, and the picture where one came with it. Raises RequestError for anything else."""
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said == "application/json":
        return _from_json(await request.body(), kind)
    if said == "multipart/form-data":
        return await _from_form(request, kind)
    raise RequestError(415, "unknown_type", f"the request's content type is {said!r:.80}; expected application/json or "
                  "multipart/form-data")  # fmt: skip


def check_prompts(prompts: list[str] | None, against: list[str], limits: Limits) -> None:
    """Raises RequestError for more than one question may ask."""
    count = len(prompts or ()) + len(against)
    if count > limits.prompts:
        raise too_many_prompts(count, limits.prompts)


def _from_json(body: bytes, kind: type[Asked]) -> tuple[Asked, Upload | None]:
    try:
        asked = kind.model_validate_json(body)
    except ValidationError as error:
        raise malformed(_said(error)) from error
    return asked, None if asked.image is None else Upload.decoded(asked.image, asked.name)


async def _from_form(request: Request, kind: type[Asked]) -> tuple[Asked, Upload | None]:
    upload: Upload | None = None
    fields: dict[str, Any] = {}
    async with request.form(max_files=1, max_fields=FIELDS) as form:
        for name in form:
            values = form.getlist(name)
            if name == "image":
                upload = await _file(values)
            elif any(isinstance(value, UploadFile) for value in values):
                raise malformed(f"the field {name!r:.80} is a file; expected text, and the picture as the field image")
            elif name in LISTS:
                fields[name] = values
            elif len(values) > 1:
                raise malformed(f"the field {name!r:.80} is given {len(values)} times; expected once")
            else:
                fields[name] = values[0]
    try:
        return kind.model_validate(fields), upload
    except ValidationError as error:
        raise malformed(_said(error)) from error


async def _file(values: list[UploadFile | str]) -> Upload:
    if len(values) != 1 or not isinstance(values[0], UploadFile):
        raise malformed("the field image is no file; send the picture as one file (curl -F image=@photo.jpg)")
    return Upload.named(await values[0].read(), values[0].filename)


def _said(error: ValidationError) -> str:
    """The first thing that is wrong, in a sentence."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the body"
    return f"{where:.120}: {first['msg']:.300}; see /openapi.json for what is expected"
