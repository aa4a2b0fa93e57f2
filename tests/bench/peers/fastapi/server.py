"""Fan-out as FastAPI's documentation shows it: a connection manager that awaits a send to each connection in turn.

Beyond the documentation it knows topics, and reads the benchmark's feed: one TCP connection of records, each a length
(4 bytes, big-endian, of what follows), a job's id (36 bytes) and a message.
"""

import asyncio
import json
import socket
from collections import defaultdict
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

ID = 36


class ConnectionManager:
    """Connections by the topic they watch: a job's id, or `*` for all."""

    def __init__(self) -> None:
        self.active: dict[str, dict[WebSocket, None]] = defaultdict(dict)

    def subscribe(self, websocket: WebSocket, topic: str) -> None:
        self.active[topic][websocket] = None

    def disconnect(self, websocket: WebSocket, topics: set[str]) -> None:
        for topic in topics:
            self.active[topic].pop(websocket, None)

    async def broadcast(self, topic: str, message: str) -> None:
        for websocket in list(self.active.get(topic, ())):
            try:
                await websocket.send_text(message)
            except (WebSocketDisconnect, RuntimeError):
                # It left; its own handler takes it out of the lists.
                pass


manager = ConnectionManager()


async def read_records(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            length = int.from_bytes(await reader.readexactly(4))
            record = await reader.readexactly(length)
            message = record[ID:].decode()
            await manager.broadcast(record[:ID].decode(), message)
            await manager.broadcast("*", message)
    except (asyncio.IncompleteReadError, ConnectionError):
        # The benchmark hangs up when it is done.
        writer.close()


@asynccontextmanager
async def lifespan(app: FastAPI):
    feed = await asyncio.start_server(read_records, "127.0.0.1", 0)
    print(f"ready {app.state.port} {feed.sockets[0].getsockname()[1]}", flush=True)
    yield
    feed.close()


app = FastAPI(lifespan=lifespan)


@app.websocket("/ws/progress")
async def progress(websocket: WebSocket) -> None:
    await websocket.accept()
    topics: set[str] = set()
    try:
        while True:
            wanted = (await websocket.receive_json())["job_ids"]
            for topic in ["*"] if wanted is None else wanted:
                manager.subscribe(websocket, topic)
                topics.add(topic)
            await websocket.send_text(json.dumps({"type": "subscription_confirmed"}))
    except WebSocketDisconnect:
        manager.disconnect(websocket, topics)


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    app.state.port = listener.getsockname()[1]
    config = uvicorn.Config(app, log_level="error", access_log=False, ws_per_message_deflate=False, backlog=4096)
    uvicorn.Server(config).run(sockets=[listener])
