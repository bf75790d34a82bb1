"""The site opens offline: a page that would ask the network is a warning, and so the end of the build."""

import re
from pathlib import Path


def asked(site: Path) -> list[str]:
    """Pages below `site` whose scripts, styles or images lie elsewhere."""
    return [
        f"{page.relative_to(site)} asks {address}"
        for page in sorted(site.rglob("*.html"))
        for address in re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text(encoding="utf-8")
        )
    ]


def _on_finished(app, exception):
    from sphinx.util.logging import getLogger

    for line in [] if exception else asked(Path(app.outdir)):
        getLogger(__name__).warning(line)


def setup(app):
    app.connect("build-finished", _on_finished)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
