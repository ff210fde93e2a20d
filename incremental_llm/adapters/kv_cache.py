"""The name under which a model's forward takes its keys and values: transformers 5.24 renamed it.

model(input_ids=ids_BT, use_cache=True, **{CACHE: DynamicCache(config=model.config)})
"""

from __future__ import annotations

from importlib.metadata import version

CACHE = "cache" if tuple(map(int, version("transformers").split(".")[:2])) >= (5, 24) else "past_key_values"
