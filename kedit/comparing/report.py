"""A comparison's report on disk: report.json, from which the others can be made again, report.md and report.html."""

from pathlib import Path

from kedit.comparing.report_page import report_page
from kedit.comparing.report_text import report_text
from kedit.comparing.results import Comparison
from kedit.comparing.results_file import to_json
from kedit.running.files import write_whole


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the three files, each whole or not at all.

    Args:
        comparison: what was found.
        folder: the run's folder of logs; made where it is not there.

    Returns:
        report.html, report.md and report.json.

    Raises:
        DataError: the comparison contradicts itself.
    """
    texts = {
        "report.json": to_json(comparison),
        "report.md": report_text(comparison),
        "report.html": report_page(comparison),
    }
    for name, text in texts.items():
        # a model's output may hold half a character, which no file takes
        write_whole(folder / name, text.encode("utf-8", "replace").decode())
    return [folder / name for name in reversed(texts)]
