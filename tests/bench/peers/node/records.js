'use strict';
// The feed of the benchmark: one TCP connection of records, each a length (4 bytes, big-endian, of what follows),
// a job's id (36 bytes) and a message.

const net = require('node:net');

const LENGTH = 4;
const ID = 36;

/** Listens on a free port; calls `deliver(id, message)` for each record. */
exports.listen = (deliver, listening) => {
  const server = net.createServer((socket) => {
    let rest = Buffer.alloc(0);
    socket.on('data', (chunk) => {
      const data = rest.length > 0 ? Buffer.concat([rest, chunk]) : chunk;
      let at = 0;
      while (data.length - at >= LENGTH) {
        const end = at + LENGTH + data.readUInt32BE(at);
        if (data.length < end) break;
        const message = at + LENGTH + ID;
        deliver(data.latin1Slice(at + LENGTH, message), data.subarray(message, end));
        at = end;
      }
      rest = data.subarray(at);
    });
    // The benchmark hangs up when it is done.
    socket.on('error', () => {});
  });
  server.listen(0, '127.0.0.1', () => listening(server.address().port));
};

/** The topics of a subscribe message: ids of jobs, or `*` for all. */
exports.topics = (text) => JSON.parse(text).job_ids ?? ['*'];

exports.CONFIRMED = '{"type":"subscription_confirmed"}';
