"""Plan `stream`: the whole tail on batches of masked feature maps, for every tail and device."""

from ov_recipro.plans.stream.stream_plan import Mask, StreamPlan, batched, plan_stream

__all__ = ["Mask", "StreamPlan", "batched", "plan_stream"]
