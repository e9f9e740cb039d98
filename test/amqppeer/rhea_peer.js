// An AMQP 1.0 peer on rhea: what becomes of a message is in the name of its address.
//
// rhea_peer.js PORT listens on 127.0.0.1 and writes a line of JSON for every message and event.
// NODE_PATH leads to rhea.
'use strict';

const rhea = require('rhea');

const container = rhea.create_container();
const CREDIT = 100;

function say(what) {
  process.stdout.write(JSON.stringify(what) + '\n');
}

// typed gives the value with the name of its type on the wire, as the other peers do.
function typed(value) {
  if (value === null || value === undefined) return ['null', null];
  if (typeof value === 'boolean') return ['bool', value];
  if (value instanceof Date) return ['timestamp', value.getTime()];
  if (Buffer.isBuffer(value)) return ['binary', value.toString('base64')];
  if (typeof value === 'string') return ['string', value];
  if (typeof value === 'bigint') return ['long', Number(value)];
  if (typeof value === 'number') return [Number.isInteger(value) ? 'long' : 'double', value];
  if (Array.isArray(value)) return ['list', value.map(typed)];
  return ['map', Object.fromEntries(Object.entries(value).map(([k, v]) => [k, typed(v)]))];
}

function all(values) {
  return Object.fromEntries(Object.entries(values || {}).map(([k, v]) => [k, typed(v)]));
}

container.on('receiver_open', (context) => {
  const receiver = context.receiver;
  const address = receiver.target && receiver.target.address || '';
  receiver.set_target({address});
  if (address.startsWith('refuse')) {
    receiver.local.attach.target = undefined;
    receiver.close({condition: 'amqp:not-found', description: 'no such node'});
    return;
  }
  say({event: 'attached', address});
  if (address.startsWith('credit')) receiver.add_credit(Number(address.split('.')[1]));
  else if (!address.startsWith('nocredit')) receiver.add_credit(CREDIT);
});

container.on('message', (context) => {
  const {message, delivery, receiver} = context;
  const address = receiver.target.address;
  const body = message.body && message.body.content || message.body || Buffer.alloc(0);
  say({
    event: 'message', address, settled: Boolean(delivery.remote_settled), id: message.message_id, body: Buffer.from(body).toString('base64'),
    durable: Boolean(message.durable), priority: message.priority === undefined ? 4 : message.priority, ttl: message.ttl || 0,
    subject: message.subject || null, to: message.to || null, reply_to: message.reply_to || null,
    correlation_id: message.correlation_id || null, group_id: message.group_id || null,
    user_id: message.user_id ? Buffer.from(message.user_id).toString() : null,
    content_type: message.content_type || null, content_encoding: message.content_encoding || null,
    creation_time: message.creation_time ? new Date(message.creation_time).getTime() : 0,
    properties: all(message.application_properties), annotations: all(message.message_annotations),
  });
  if (!address.startsWith('credit')) receiver.add_credit(1);
  if (delivery.remote_settled || address.startsWith('silent')) return;
  if (address.startsWith('reject')) delivery.reject({condition: 'amqp:resource-limit-exceeded', description: 'full'});
  else if (address.startsWith('release')) delivery.release();
  else if (address.startsWith('modify')) {
    delivery.modified({delivery_failed: true, undeliverable_here: address.startsWith('modify-undeliverable')});
  } else if (address.startsWith('detach')) receiver.close({condition: 'amqp:link:detach-forced', description: 'bye'});
  else if (address.startsWith('drop')) context.connection.socket.destroy();
  else if (address.startsWith('settle')) delivery.update(true);
  else delivery.accept();
  if (address.startsWith('idle')) receiver.close({condition: 'amqp:link:detach-forced', description: 'idle for too long'});
});

container.on('receiver_close', ({receiver}) => {
  if (receiver.target && receiver.target.address) say({event: 'detached', address: receiver.target.address});
});

container.on('disconnected', () => say({event: 'disconnected'}));
container.on('connection_error', () => {});
container.on('session_error', () => {});
container.on('receiver_error', () => {});
container.on('error', (error) => process.stderr.write(String(error) + '\n'));

process.on('SIGUSR2', () => say({event: 'mark'}));

container.options.autoaccept = false;
container.options.autosettle = false;
container.options.receiver_options = {autoaccept: false, autosettle: false, credit_window: 0};
container.listen({port: Number(process.argv[2]), host: '127.0.0.1'}).on('listening', () => say({event: 'listening'}));
