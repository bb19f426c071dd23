"""What `digseg-export` writes of a bundle beside it: a page for browsers, a repository for Triton Inference Server."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digseg_export.progress import Progress
from digseg_export.triton_repository import Repository, RepositoryBuilder
from digseg_export.web import Site, SiteBuilder

if TYPE_CHECKING:
    from digseg_export.request import Request


@dataclass(frozen=True)
class Written:
    """What was written; None for what was not asked for."""

    site: Site | None
    models: Repository | None

    def to_json(self) -> dict[str, Any]:
        site = {} if self.site is None else {"page": {**asdict(self.site), "folder": str(self.site.folder)}}
        return {**site, **({} if self.models is None else {"triton_repository": self.models.to_json()})}

    def say(self) -> None:
        """Where it is, and how to try it."""
        if self.site is not None:
            print(f"page of {self.site.bundle} written to {self.site.folder} ({self.site.bytes / 1e6:.0f} MB, of which a browser "
                  f"without WebGPU loads {self.site.loaded / 1e6:.0f}); try it:")  # fmt: skip
            print(f"  python -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(self.site.folder))}")
        if self.models is not None:
            print(f"repository of Triton Inference Server written to {self.models.folder} ({self.models.bytes / 1e6:.0f} MB), "
                  f"models {', '.join(self.models.models)}; serve it:")  # fmt: skip
            print(f"  tritonserver --model-repository={shlex.quote(str(self.models.folder.absolute()))}")


@dataclass(frozen=True)
class Beside:
    """What shall be written, checked; None for what is not asked for."""

    page: SiteBuilder | None
    repository: RepositoryBuilder | None

    @classmethod
    def of(cls, request: Request, bundle: Path) -> Beside:
        """Raises what the builders raise."""
        from digseg_export.request import WEB

        page = SiteBuilder(bundle, request.site, request.web_runtime) if request.target == WEB else None
        if request.triton_repository is None:
            return cls(page, None)
        given = {
            "backend": request.triton_backend,
            "device": request.triton_device,
            "instances": request.triton_instances,
        }
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return cls(page, RepositoryBuilder(bundle, request.triton_repository, **chosen))

    @property
    def builder(self) -> SiteBuilder | RepositoryBuilder | None:
        """One of them, which knows where the bundle is; None where nothing is to be written."""
        return self.page or self.repository

    def preview(self) -> dict[str, Any]:
        """For --dry-run."""
        builders = [builder for builder in (self.page, self.repository) if builder is not None]
        return {name: value for builder in builders for name, value in builder.preview().items()}

    def run(self, progress: Progress) -> Written:
        site = self.page.run(progress) if self.page else None
        return Written(site, self.repository.run(progress) if self.repository else None)
