"""Publishes what a pool stores and removes, as vLLM does, and reads it as a router would."""

import sys
import time

try:
    import zmq
except ImportError:
    sys.exit("pip install pyzmq")

from infer_accel.integrations.kv_events import KvEventPublisher
from infer_accel.kvcache import BlockManager, BlockPool

manager = BlockManager(BlockPool(1024, block_size=16, event_bytes=1 << 24))
context = zmq.Context()
with KvEventPublisher(manager, "tcp://127.0.0.1:0", topic="kv-events") as publisher:
    router = context.socket(zmq.SUB)
    router.connect(publisher.endpoint)
    router.setsockopt(zmq.SUBSCRIBE, b"kv-events")
    time.sleep(0.3)  # a subscription takes a moment to arrive
    manager.admit(range(100))
    topic, number, batch = router.recv_multipart()
print(f"published on {topic.decode()}: message {int.from_bytes(number, 'big')} of {len(batch)} bytes")
router.close(linger=0)
context.term()
