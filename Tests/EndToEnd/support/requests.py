"""Sends every request that has a number in it with the one given, whatever it is, and finds the daemon answering each.
usage: requests.py SOCKET GROUP PID NUMBER"""

import http.client
import json
import socket
import sys


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self.path)


def request(path, method, url, body=None):
    connection = Connection(path)
    connection.request(method, url, body)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, text


path, group, pid, number = sys.argv[1:5]
name = json.dumps(group)
bodies = {
    "/v1/evict": ['{"target":%s,"bytes":%s}' % (name, number), '{"target":%s,"bytes":%s}' % (pid, number), '{"target":%s}' % number],
    "/v1/restore": ['{"target":%s}' % number],
    "/v1/limit": ['{"group":%s,"limit_bytes":%s}' % (name, number)],
    "/v1/pool": ['{"limit_bytes":%s}' % number],
    "/v1/detach": ['{"pid":%s}' % number],
    "/v1/areas": [
        '{"path":"/nonexistent/area","size_bytes":%s}' % number,
        '{"path":"/nonexistent/area","size_bytes":4194304,"priority":%s}' % number,
    ],
}
for url, variants in bodies.items():
    for body in variants:
        status, text = request(path, "POST", url, body)
        if status >= 500 and status != 504:
            sys.exit("%s %s: status %d: %s" % (url, body, status, text))
for url in ("/v1/status", "/metrics"):
    status, _ = request(path, "GET", url)
    if status != 200:
        sys.exit("%s: status %d" % (url, status))
request(path, "POST", "/v1/limit", '{"group":%s,"limit_bytes":67108864}' % name)
