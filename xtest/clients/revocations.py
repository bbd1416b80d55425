"""The published revocation consumers of a resource server, unmodified, for as long as they are let.

They follow both streams with groups of their own, as a service does that runs them in loops: an error
of Redis is waited out, and a group that is gone is made again. Each line of standard input names an
anchor, or `zone ID`; the answer is one line: `revoked` or `live`, or the epoch of the zone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import redis
from caracalai_revocation_redis import (
    RedisDelegationInvalidationConsumer,
    RedisRevocationConsumer,
    RedisRevocationStore,
)

REDIS_URL = os.environ["CARACAL_TEST_REDIS_URL"]
STREAMS_KEY = bytes.fromhex(os.environ["STREAMS_HMAC_KEY"])


def follow(kind: Any, store: RedisRevocationStore) -> None:
    client = redis.Redis.from_url(REDIS_URL)
    consumer = kind(
        client,
        store,
        consumer="xtest",
        block_ms=200,
        stream_hmac_key=STREAMS_KEY,
        require_signature=True,
    )
    while True:
        try:
            consumer.ensure_group()
            while True:
                consumer.poll_once()
        except redis.RedisError:
            time.sleep(0.05)


def main() -> None:
    client = redis.Redis.from_url(REDIS_URL)
    store = RedisRevocationStore(client)
    for kind in (RedisRevocationConsumer, RedisDelegationInvalidationConsumer):
        threading.Thread(target=follow, args=(kind, store), daemon=True).start()
    for line in sys.stdin:
        match line.split():
            case ["zone", zone]:
                answer = str(store.current_delegation_epoch(zone))
            case [anchor]:
                answer = "revoked" if store.is_revoked(anchor) else "live"
            case _:
                answer = "what?"
        print(answer, flush=True)


main()
