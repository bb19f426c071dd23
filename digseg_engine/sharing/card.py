"""The model card of a bundle: README.md with YAML front matter, every line of it from the bundle's own files.

What the manifest, `sbom.cdx.json` and a report of `digseg bench` record is shown; what they do not is said to be not recorded.
Words of those files may come from anybody: they are kept on one line and cannot become tables, links or HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from digseg_engine.bundle import Bundle
from digseg_engine.console import one_line
from digseg_engine.errors import BundleError, InputError
from digseg_engine.hub.ids import HubId
from digseg_engine.working_size import working_size

CARD = "README.md"
EXAMPLE = "example.png"
SBOM = "sbom.cdx.json"
MARK = "<!-- Written by `digseg push` from the bundle's own files. Without this line it is kept as you write it. -->"
LICENCES = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
            "cc-by-nc-sa-4.0", "openrail", "openrail++", "creativeml-openrail-m", "gpl-3.0", "agpl-3.0", "unlicense")  # fmt: skip
SHOWN = 60  # names of a vocabulary, rows of a table
UNKNOWN = "not recorded"
Body = Mapping[str, Any]


def card_of(
    bundle: Bundle, repo: HubId, prompts: Iterable[str] = (), speed: Body | None = None, example: bool = False
) -> str:
    """The whole page. prompts: of the example picture and the snippets; speed: a report of `digseg bench`; example: is
    `EXAMPLE` beside it?"""
    sbom = _sbom(bundle)
    asked = [plain(prompt) for prompt in prompts] or ["road"]
    return "\n".join([
        *_front(bundle, sbom), f"# {repo.name}", "", MARK, "", *_what(bundle), *_example(asked, example), "## Use it", "",
        *_snippets(bundle, repo, asked), *_quality(bundle, sbom), *_speed(speed), *_limits(bundle, sbom),
        *_made_from(bundle, sbom),
    ])  # fmt: skip


def plain(value: Any, most: int = 300) -> str:
    """Words of somebody else's as text on one line: no table, link, HTML or code begins or ends in them."""
    text = one_line(str(value))[:most]
    return re.sub(r"([\\`*_\[\]<>|#!~])", r"\\\1", text)


def _sbom(bundle: Bundle) -> Body:
    """The bill of materials; {} where there is none that can be read."""
    if SBOM not in bundle.manifest["files"]:
        return {}
    try:
        body = json.loads(bundle.read(SBOM))
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _licence(bundle: Bundle) -> str:
    said = bundle.manifest.get("licence")
    return str(said["weights"]) if isinstance(said, dict) and said.get("weights") else UNKNOWN


def _front(bundle: Bundle, sbom: Body) -> Iterator[str]:
    """YAML; values that are not our own words are JSON strings, which YAML reads."""
    licence = _licence(bundle)
    word = licence.lower().split()[0].rstrip(",;")
    yield "---"
    if word in LICENCES:
        yield f"license: {word}"
    elif licence != UNKNOWN:
        yield from ("license: other", f"license_name: {json.dumps(one_line(licence)[:300])}")
    yield from ("library_name: digseg-engine", "pipeline_tag: image-segmentation")
    kind = "text-prompted-segmentation" if bundle.vocabulary is None else "fixed-vocabulary-segmentation"
    yield from ("tags:", "- digseg", "- onnx", f"- {kind}")
    bases = [name for name, version in _bases(sbom) if version]
    if bases:
        yield from ("base_model:", *(f"- {json.dumps(name)}" for name in bases))
    yield from ("---", "")


def _bases(sbom: Body) -> Iterator[tuple[str, str]]:
    """(name, revision or "") of the weights it began with, where the record names them."""
    for part in _parts(sbom, "machine-learning-model"):
        name = str(part.get("name", ""))
        if re.fullmatch(r"[\w./ -]{1,100}", name):
            yield name, str(part["version"]) if str(part.get("purl", "")).startswith("pkg:huggingface/") else ""


def _parts(sbom: Body, kind: str) -> list[Body]:
    found = sbom.get("components")
    return (
        [part for part in found if isinstance(part, dict) and part.get("type") == kind]
        if isinstance(found, list)
        else []
    )


def _what(bundle: Bundle) -> Iterator[str]:
    manifest, words = bundle.manifest, bundle.vocabulary
    precision = plain(manifest["precision"]["name"])
    size = str(working_size(manifest)).removesuffix(" px")
    if words is None:
        yield f"A text-prompted segmenter in {precision}: give it a picture and any prompts, and it answers one mask for each."
    else:
        yield f"A segmenter with a fixed vocabulary of {len(words.names)} names, in {precision}: give it a picture, and it gives"
        yield "a label map." if words.labels_only else "a label map and a mask for each name."
    yield f"It is a DiGSeg bundle (ONNX graphs, verified against PyTorch) for pictures of about {size} pixels, which DiGSeg"
    yield "Engine runs from Python, from the command line and from C."
    yield ""
    if words is not None:
        names = ", ".join(plain(name, 60) for name in words.names[:SHOWN])
        yield from (f"Names: {names}{f' and {len(words.names) - SHOWN} more' if len(words.names) > SHOWN else ''}.", "")
    if (presence := manifest.get("presence")) and presence.get("threshold") is not None:
        yield from ("A prompt that is not in the picture is answered \"not there\", without a mask.", "")  # fmt: skip


def _example(prompts: list[str], example: bool) -> list[str]:
    said = f"![the picture of its golden sample with its own answer: {', '.join(prompts)}]({EXAMPLE})"
    return [said, ""] if example else []


def _snippets(bundle: Bundle, repo: HubId, prompts: list[str]) -> Iterator[str]:
    """For Python, the command line and C; the revision is left out: whoever pushes does not know the commit yet."""
    name, folded = repo.repository, bundle.vocabulary is not None
    at = name if repo.revision == "main" else str(repo)
    asked = [re.sub(r"[^\w .,-]", "", prompt) or "road" for prompt in prompts]
    words = [json.dumps(prompt, ensure_ascii=False) for prompt in asked]
    yield "It needs `digseg-engine` with the extras `hub` and `cpu` (or `gpu`), and a network the first time. `@COMMIT` behind"
    yield from ("the name keeps to one commit.", "", "```python", "from digseg_engine import Engine", "")
    yield f'engine = Engine.load("{at}")'
    listed = "" if folded else f", [{', '.join(words)}]"
    yield f'result = engine.segment("photo.jpg"{listed})'
    yield from ('result.overlay().save("overlay.png")', "```", "", "```bash")
    yield f"digseg segment photo.jpg{'' if folded else ''.join(f' -p {word}' for word in words)} -b {at} -o out"
    yield from (
        f"digseg serve {at}",
        "```",
        "",
        f"For C take the folder: `digseg verify {at}` fetches it and says where it is; or",
        "",
    )
    yield "```bash"
    yield f'hf download {name} --revision {repo.revision} --exclude {CARD} --exclude "*.png" --local-dir {repo.name}'
    yield from ("```", "", "(without this page, because a bundle's reader refuses what its manifest does not list)", "")
    yield from ("```c", *_in_c(repo.name, [] if folded else words), "```", "")


def _in_c(folder: str, prompts: list[str]) -> list[str]:
    given = f"prompts, {len(prompts)}" if prompts else "NULL, 0"
    named = [f"  const char *prompts[] = {{{', '.join(prompts)}}};"] if prompts else []
    return [
        "#include <digseg/digseg.h>", "#include <stdio.h>", "",
        "int segment(unsigned char *rgb, int width, int height) {", *named,
        "  digseg_engine *engine = NULL;", "  digseg_result *result = NULL;", "  digseg_image image;", "  digseg_view view;",
        "  digseg_image_init(&image, sizeof image);", "  digseg_view_init(&view, sizeof view);",
        "  image.data = rgb; image.width = width; image.height = height;",
        f'  if (digseg_engine_create("{folder}", NULL, &engine) != DIGSEG_OK ||',
        f"      digseg_segment(engine, &image, {given}, NULL, &result) != DIGSEG_OK ||",
        "      digseg_result_view(result, &view) != DIGSEG_OK)",
        '    return fprintf(stderr, "%s\\n", digseg_last_error()), 1;',
        '  printf("%d masks of %d x %d\\n", view.count, view.width, view.height);',
        "  digseg_result_free(result);", "  return digseg_engine_destroy(engine), 0;", "}",
    ]  # fmt: skip


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    yield from (f"| {' | '.join(row)} |" for row in rows[:SHOWN])
    if len(rows) > SHOWN:
        yield from ("", f"({len(rows) - SHOWN} more rows in the bundle)")
    yield ""


def _quality(bundle: Bundle, sbom: Body) -> Iterator[str]:
    """What was reached, how presence does, and how far the graphs are from PyTorch: each where the bundle records it."""
    yield from ("## How good it is", "")
    rows = [[plain(row.get("type", "")), plain(row.get("slice", "")) or UNKNOWN, plain(row.get("value", ""))]
            for row in _figures(sbom) if str(row.get("type", "")).startswith("mean IoU")]  # fmt: skip
    if rows:
        yield "*student* is what this bundle holds; *reference.N* is the model it was distilled from, in N steps; *refine* lets"
        yield "that go over the student's masks or the true ones; *codec* is the best that masks in the latent space can be."
        yield ""
        yield from _table(["figure", "on", "value"], rows)
    else:
        yield from ("Quality on pictures: not recorded in the bundle. `digseg eval` measures it on yours.", "")
    presence = bundle.manifest.get("presence")
    if isinstance(presence, dict) and isinstance(presence.get("sets"), list):
        yield from ("Whether a prompt is there (presence):", "")
        yield from _table(["on", "MCC", "recall", "turned away of what is not there"],
                          [[plain(one.get("data", "")), *(_figure(one.get(key)) for key in ("mcc", "recall", "turned_away"))]
                           for one in presence["sets"] if isinstance(one, dict)])  # fmt: skip
    checks = bundle.manifest["verification"].get("checks")
    ends = (
        [one for one in checks if isinstance(one, dict) and one.get("stage") == "end to end"]
        if isinstance(checks, list)
        else []
    )
    if ends:
        yield from ("The graphs against PyTorch in float32, end to end, before they were published:", "")
        yield from _table(["graph", "relative error", "mask IoU", "worst mask"],
                          [[plain(one.get("graph", "")), *(_figure(one.get(key)) for key in ("relative", "iou", "worst_iou"))]
                           for one in ends])  # fmt: skip


def _figures(sbom: Body) -> list[Body]:
    at: Any = sbom
    for key in ("metadata", "component", "modelCard", "quantitativeAnalysis", "performanceMetrics"):
        at = at.get(key) if isinstance(at, dict) else None
    return [row for row in at if isinstance(row, dict)] if isinstance(at, list) else []


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else UNKNOWN


def read_speed(body: Any, digest: str) -> Body:
    """A report of `digseg bench --json` about the bundle with this digest. Raises InputError for anything else."""
    if (
        not isinstance(body, dict)
        or body.get("format") != "digseg.bench/1"
        or not isinstance(body.get("backends"), list)
    ):
        raise InputError("--bench takes what `digseg bench BUNDLE --json FILE` writes (format digseg.bench/1)")
    if not isinstance(body.get("model"), dict) or body["model"].get("sha256") != digest:
        raise InputError(
            "the report of --bench is about another bundle; measure this one: digseg bench BUNDLE --json FILE"
        )
    return body


def _speed(speed: Body | None) -> Iterator[str]:
    yield from ("## How fast it is", "")
    if speed is None:
        yield from ("Not recorded. `digseg bench` measures every backend of a machine.", "")
        return
    machine = speed["machine"] if isinstance(speed.get("machine"), dict) else {}
    where = ", ".join(plain(machine[key]) for key in ("processor", "gpus") if machine.get(key))
    threads = plain(speed.get("threads", UNKNOWN))
    yield f"Milliseconds, medians, as `digseg bench` measured them on {where or UNKNOWN} (threads: {threads},"
    yield from (f"{plain(speed.get('date', UNKNOWN))}). {plain(speed.get('note') or '')}".rstrip(), "")
    rows = []
    for one in speed["backends"]:
        for row in one.get("rows") or []:
            if "first" in row and "later" in row:
                rows.append([plain(one["backend"]), *(str(row[key]) for key in ("size", "batch", "prompts")),
                             *(_figure(row[kind]["median_ms"]) for kind in ("first", "later"))])  # fmt: skip
    yield from _table(["backend", "pixels", "pictures", "prompts", "first question", "later questions"], rows)


def _limits(bundle: Bundle, sbom: Body) -> Iterator[str]:
    yield from ("## Limits", "")
    card = sbom.get("metadata", {}).get("component", {}).get("modelCard", {}) if sbom else {}
    for limit in card.get("considerations", {}).get("technicalLimitations", []):
        yield f"- {plain(limit)}"
    shapes = bundle.manifest["shapes"]
    if isinstance(shapes.get("H"), dict):
        spans = ", ".join(
            f"{axis} {span['min']} to {span['max']}" for axis, span in sorted(shapes.items()) if isinstance(span, dict)
        )
        yield f"- exported for these shapes alone: {spans} (B pictures, K prompts, L tokens, H x W pixels)"
    if bundle.vocabulary is not None:
        yield "- it finds the names of its vocabulary and nothing else"
    yield from ("- masks are estimates: look at them before anything depends on one", "")


def _made_from(bundle: Bundle, sbom: Body) -> Iterator[str]:
    yield from ("## What it was made from", "")
    bases = dict.fromkeys(f"{plain(name)}{f' ({plain(version)})' if version else ''}" for name, version in _bases(sbom))
    yield f"- weights it began with: {', '.join(bases) or UNKNOWN}"
    data = []
    for part in _parts(sbom, "data"):
        ids = [one["license"].get("id") or one["license"].get("name") for one in part.get("licenses", []) if isinstance(one, dict)
               and isinstance(one.get("license"), dict)]  # fmt: skip
        data.append(f"{plain(part.get('name', ''))} (licence: {plain(', '.join(filter(None, ids)) or UNKNOWN)})")
    yield f"- data: {', '.join(data) or UNKNOWN}"
    yield f"- licence of the weights: {plain(_licence(bundle))}"
    files = bundle.manifest["files"]
    size = sum(int(entry["size"]) for entry in files.values())
    yield f"- {len(files)} files, {size / 2**20:.1f} MiB; SHA-256 of each in `manifest.json`, of all together `{bundle.digest}`"
    tools = bundle.manifest.get("tools")
    if isinstance(tools, dict):
        yield f"- made with {', '.join(f'{plain(name)} {plain(version)}' for name, version in sorted(tools.items()))}"
    yield ""


def check_card(bundle: Bundle, build: Any) -> str:
    """What `build` writes. Raises BundleError where a file of the bundle is not shaped as ours are."""
    try:
        return str(build())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"the model card of {bundle.folder} cannot be written: {error!r} in what its manifest or {SBOM} "
                          "says; export it again") from error  # fmt: skip
