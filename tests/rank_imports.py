"""What a rank imports, for the process that `ranks.py` forks ranks from.

A module of its own: its name stands in that process's command line, where the worker's is what other tests look for.
"""

import deepspeed
import s3fs
import torch.distributed.tensor
import torch.utils.tensorboard
import transformers.models.auto.tokenization_auto
import transformers.models.llama.modeling_llama

import distributed_kd.student.worker

__all__ = ["deepspeed", "distributed_kd", "s3fs", "torch", "transformers"]
