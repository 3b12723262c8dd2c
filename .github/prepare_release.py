"""Before a version is built: check that the tag is that version, and make the README ready for PyPI.

`python .github/prepare_release.py v0.1.0 owner/srnn-zoo` ends with an error where the tag, the version of the package,
CITATION.cff and the newest dated heading of CHANGELOG.md are not one version. Else it writes the repository's name
where the metadata and the README have `owner/srnn-zoo`, and whole addresses in place of the README's relative links.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "owner/srnn-zoo"
IMAGES = (".png", ".jpg", ".svg", ".gif")


def versions(root: Path) -> dict[str, str]:
    """What each file calls the version, by the file's name; empty where it says none."""
    patterns = {
        "srnn_zoo/__init__.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## \[(.+)\] - \d{4}-\d\d-\d\d$",
    }
    found = {
        name: re.search(p, (root / name).read_text(encoding="utf-8"), re.MULTILINE) for name, p in patterns.items()
    }
    return {name: match[1] if match else "" for name, match in found.items()}


def whole_links(text: str, repository: str, tag: str, root: Path = ROOT) -> str:
    """A README whose links to files lead to the repository at a tag."""

    def whole(match: re.Match[str]) -> str:
        before, path = match.groups()
        file = root / path.partition("#")[0]
        if "://" in path or not (
            file.is_file() or file.suffix in (".md", *IMAGES)
        ):  # whole, or what only looks like a link
            return match[0]
        kind = "raw" if path.endswith(IMAGES) else "blob"
        return f"{before}https://github.com/{repository}/{kind}/{tag}/{path}"

    return re.sub(r'(\]\(|(?:src|href)=")([^)"\s#][^)"\s]*)', whole, text)


def main(tag: str, repository: str, root: Path = ROOT) -> None:
    """Check a checkout, and change its setup.cfg and README.md."""
    wrong = {name: version for name, version in versions(root).items() if f"v{version}" != tag}
    if wrong:
        said = ", ".join(f"{name} has {version or 'no dated heading'}" for name, version in wrong.items())
        raise SystemExit(f"the tag is {tag}, but {said}")
    for name in ("setup.cfg", "README.md"):
        path = root / name
        path.write_text(path.read_text(encoding="utf-8").replace(PLACEHOLDER, repository), encoding="utf-8")
    readme = root / "README.md"
    readme.write_text(whole_links(readme.read_text(encoding="utf-8"), repository, tag), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
