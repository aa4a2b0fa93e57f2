'use strict';
// Fan-out with `ws`: sets of sockets by topic, and a send to each. Compression is off, as it is everywhere here.

const { WebSocketServer } = require('ws');
const records = require('./records');

const topics = new Map();
const server = new WebSocketServer({ host: '127.0.0.1', port: 0, backlog: 4096, perMessageDeflate: false });

server.on('connection', (socket) => {
  const mine = new Set();
  socket.on('message', (text) => {
    for (const topic of records.topics(text)) {
      if (!topics.has(topic)) topics.set(topic, new Set());
      topics.get(topic).add(socket);
      mine.add(topic);
    }
    socket.send(records.CONFIRMED);
  });
  socket.on('close', () => {
    for (const topic of mine) topics.get(topic).delete(socket);
  });
  socket.on('error', () => {});
});

const deliver = (id, message) => {
  for (const topic of [id, '*']) {
    for (const socket of topics.get(topic) ?? []) socket.send(message, { binary: false });
  }
};

server.on('listening', () => {
  records.listen(deliver, (feed) => console.log(`ready ${server.address().port} ${feed}`));
});
