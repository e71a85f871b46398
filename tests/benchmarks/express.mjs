// The application of apps.py with Express, express-session and connect-redis: the
// same kinds of request, answered by as many processes. Its settings come from the
// environment variable BENCHMARK, as JSON.

import assert from "node:assert/strict";
import cluster from "node:cluster";
import { RedisStore } from "connect-redis";
import express from "express";
import session from "express-session";
import { createClient } from "redis";

const { host, port, url, workers, contents } = JSON.parse(process.env.BENCHMARK);

if (cluster.isPrimary) {
  for (let i = 0; i < workers; i++) cluster.fork();
  cluster.on("exit", () => process.exit(1));
} else {
  const client = createClient({ url });
  client.on("error", (error) => {
    console.error(error.message);
    process.exit(1);
  });
  await client.connect();
  const app = express();
  app.get("/worker", (request, response) => response.send(String(process.pid)));
  app.use(
    session({
      store: new RedisStore({ client, prefix: "express:" }),
      secret: "not a secret",
      resave: false,
      saveUninitialized: false,
    }),
  );
  let user = 10000;
  app.get("/unseen", (request, response) => response.send("ok"));
  app.get("/read", (request, response) => {
    assert(request.session._user_id);
    response.send("ok");
  });
  app.get("/nested", (request, response) => {
    assert(request.session.cart.total);
    response.send("ok");
  });
  app.get("/inside", (request, response) => {
    request.session.cart.total += 1;
    response.send("ok");
  });
  app.get("/change", (request, response) => {
    assert.equal(typeof request.session.n, "number");
    request.session.n += 1;
    response.send("ok");
  });
  app.get("/login/:size", (request, response) => {
    Object.assign(request.session, contents[request.params.size]);
    request.session._user_id = `user-${user++}`;
    response.send("ok");
  });
  app.get("/destroy", (request, response, next) => {
    request.session.destroy((error) => (error ? next(error) : response.send("ok")));
  });
  app.listen(port, host);
}
