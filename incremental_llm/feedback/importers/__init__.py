"""Logs of other shapes become events here, one module a source; each streams, resumes and refuses line by line."""

from incremental_llm.feedback.importers.jsonl import ImportReport, RefusedLine, import_jsonl

__all__ = ["ImportReport", "RefusedLine", "import_jsonl"]
