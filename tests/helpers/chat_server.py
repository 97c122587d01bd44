"""An OpenAI-compatible server of one process, whose model looks for the commonest marked word."""

import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Completions(BaseHTTPRequestHandler):
    """Answers as `server.answer` says; keeps what it was asked in `server.asked`."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), request))
        status, body = self.server.answer(request["messages"][-1]["content"])
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""


def completion(text):
    """A reply of a server that has answered."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def word_model(question):
    """Describes a latent by the word that is marked most, and finds it in excerpts."""
    marked = re.findall("«(.*?)»", question.partition("\n\n")[2])
    if marked:
        word = Counter(marked).most_common(1)[0][0]
        return completion(json.dumps({"description": word}))
    word = re.search("described as: (.*)", question)[1]
    lines = re.findall(r"(?m)^\d+\. (.*)$", question)
    fits = [int(word in line.split()) for line in lines]
    return completion(f"```json\n{json.dumps({'fits': fits})}\n```")


@contextmanager
def chat_server(answer=word_model):
    """A running server; `url` is what users name as base."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    server.answer = answer
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
