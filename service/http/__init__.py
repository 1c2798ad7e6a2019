"""HTTP mechanics that know nothing of tokens: server, sockets, middleware, problem documents."""
