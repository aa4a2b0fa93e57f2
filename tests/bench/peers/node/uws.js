'use strict';
// Fan-out with the publish and subscribe that uWebSockets.js brings; it joins what one turn of its loop publishes.

const uws = require('@trufflesuite/uws-js-unofficial');
const records = require('./records');

// The package falls back to `ws` where its native part cannot be loaded; that would be another server.
if (!Object.keys(require.cache).some((file) => file.endsWith('.node'))) {
  console.error('no native part of uWebSockets.js for this machine and this version of Node');
  process.exit(1);
}

const app = uws.App();
app.ws('/*', {
  compression: uws.DISABLED,
  idleTimeout: 0,
  // A client that is behind by more loses messages.
  maxBackpressure: 16 * 1024 * 1024,
  message: (socket, message) => {
    for (const topic of records.topics(Buffer.from(message).toString())) socket.subscribe(topic);
    socket.send(records.CONFIRMED, false);
  },
});

const deliver = (id, message) => {
  app.publish(id, message, false);
  app.publish('*', message, false);
};

app.listen('127.0.0.1', 0, (socket) => {
  records.listen(deliver, (feed) => console.log(`ready ${uws.us_socket_local_port(socket)} ${feed}`));
});
