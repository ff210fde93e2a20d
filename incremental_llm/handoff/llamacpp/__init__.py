"""GGUF: the files that llama.cpp, and what is built on it, loads.

    llama-server -m model.gguf                     a whole model
    llama-server -m base.gguf --lora adapter.gguf  the base, and the stack as one adapter

`architecture` says which models can be written and how their weights lie there, `vocabulary` turns a tokenizer into
what llama.cpp reads, `model` and `adapter` write (and read back) the two kinds of file.

The one design fact: llama.cpp rotates neighbouring numbers of a head where transformers rotates its two halves, so for
Llama the rows of every query and key weight lie in another order, and those of an adapter's B with them.
"""
