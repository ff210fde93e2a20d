"""Logs of other shapes become events here, one module a shape; each streams, can be repeated, and refuses row by row.

`jsonl` is the project's own event format; `openwebui`, `langfuse` and `rows` say what one record of another tool means,
`records` reads files of records, and `sources` puts them together.
"""

from incremental_llm.feedback.importers.jsonl import import_jsonl
from incremental_llm.feedback.importers.report import ImportReport, RefusedRow
from incremental_llm.feedback.importers.sources import FORMATS, Format, format_of, import_file

__all__ = ["FORMATS", "Format", "ImportReport", "RefusedRow", "format_of", "import_file", "import_jsonl"]
