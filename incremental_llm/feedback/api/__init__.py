"""The ingestion API: applications log replies and send feedback over HTTP, and a 202 means that it is on the disk.

`create_app(store)` is the application, `illm serve-ingest` serves it; docs/ingest.md has the endpoints.

    >>> from incremental_llm.feedback import FeedbackStore
    >>> from incremental_llm.feedback.api.keys import KeyTable
    >>> store = FeedbackStore("sqlite://")
    >>> key, secret = KeyTable(store).create("shop", ["ingest"])
    >>> key.name, secret.startswith(f"illm_{key.id}_")
    ('shop', True)
    >>> KeyTable(store).credentials().authenticate(f"Bearer {secret}").name
    'shop'

Where things are: `app` has the endpoints and `service` what they do; `boundary` surrounds each request, `body` reads
it, `intake` makes an event of it; `commit` is the one writer and `groups` its transaction; `keys` has API keys and
reply tokens, `limits` the rates, `problem` the one shape of an error.

The one design fact: one thread writes. What has queued up meanwhile goes into one transaction, so all of it waits for
the disk once, and nobody is answered before the disk has answered.
"""
