"""Run by test_parallel in two processes at once: a model whose heads are split over them, against the whole model."""

from __future__ import annotations

import json
import os
import warnings

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import headscope as hs
from tests.model.alike import difference


def compare(rank: int, port: int, *folders: str) -> None:
    """Print one JSON document: for each folder the largest difference of every number, and what must agree exactly."""
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # `tp_plan` as an argument, which newer versions want in a config
    found = {}
    for folder in folders:
        whole = hs.load(folder)
        split = hs.load(AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto"), tokenizer=whole.tokenizer)
        probe = hs.repeated_tokens(whole, n_prompts=4, period=8)
        verified, wanted = (hs.verify(model, probe=probe, top=3) for model in (split, whole))
        heads = [hs.HeadId(1, 1), hs.HeadId(1, whole.n_heads - 1)]
        traced, edges = (hs.trace_circuit(model, heads, probe=probe) for model in (split, whole))
        found[folder] = {
            "own_heads": split.hf.config.num_attention_heads // dist.get_world_size(),
            "heads": [split.n_heads, whole.n_heads],
            "kv_heads": [split.n_kv_heads, whole.n_kv_heads],
            "support": [split.check.support, split.check.reason],
            "scan": difference(hs.scan(split, probe=probe).to_dict(), hs.scan(whole, probe=probe).to_dict()),
            "verify": difference(verified.to_dict(), wanted.to_dict()),
            "circuit": difference(traced.to_dict(), edges.to_dict()),
            "copying": sum(one.copying is not None for one in verified.heads),
            "edges": len(edges.edges),
        }
    print(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
