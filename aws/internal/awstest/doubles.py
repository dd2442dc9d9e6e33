"""Serves one of the doubles, moto or ministack, on the listening socket that is file descriptor 3.

It ends when standard input does, so that it never outlives the tests, however they end.
"""

import os
import sys
import threading


def leave():
    sys.stdin.buffer.read()
    os._exit(0)


threading.Thread(target=leave, daemon=True).start()

if sys.argv[1] == "moto":
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    turn = threading.Lock()

    def application(environ, start_response):
        """One request after the other: what moto keeps is not made for several at a time."""
        with turn:
            return list(moto(environ, start_response))

    make_server("127.0.0.1", 0, application, threaded=True, fd=3).serve_forever()
else:
    import asyncio

    from hypercorn.asyncio import serve
    from hypercorn.config import Config
    from ministack.app import app

    config = Config()
    config.bind = ["fd://3"]
    asyncio.run(serve(app, config))
