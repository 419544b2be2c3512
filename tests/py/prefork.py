"""A preforking web server of the old kind: the parent binds the socket, forks the workers, and
forks another one whenever one dies. The application (webapp.py) is imported after the fork.

    prefork.py WORKERS      prints its port, and serves until its standard input ends
"""

import os
import select
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def worker(server):
    import webapp
    server.set_app(webapp.app)
    server.serve_forever()


def main():
    server = WSGIServer(("127.0.0.1", 0), Quiet)
    server.socket.listen(128)
    print(server.server_port, flush=True)
    workers = set()
    while not select.select([0], [], [], 0.02)[0]:
        while len(workers) < int(sys.argv[1]):
            child = os.fork()
            if child == 0:
                worker(server)
            workers.add(child)
        ended, _ = os.waitpid(-1, os.WNOHANG)
        workers.discard(ended)


main()
