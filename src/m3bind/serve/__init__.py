"""A space and an index as a web service: an API under /api, a page, health and metrics (extra `serve`).

* `app`: `make_app`, the whole as an ASGI application. * `run`: it as a process, from start to an orderly end.
* `service`: what all routes share. `routes_about`, `routes_ask`, `routes_seen`: the routes. `demo`: something to serve.
* `archive`: the index as it is now, opened anew when it changed. * `queues`: bounded waiting in front of the towers.
* `questions`: parts of a question -> one vector. `phrases`, `zero_shot`, `layout`: what is computed from it.
* `previews`, `pictures`, `kept`: what can be seen of a file. * `multipart`, `uploads`: files that people bring.
* `guard`: what a request must be before anything reads it. `access`: the token. `watch`: time, and clients that left.
* `settings`: all limits. `problems`: errors as answers. `messages`: shapes of questions and answers. `metrics`.
"""
