// A receiver of HL7 messages that is not ours: `node hl7_receiver.cjs PORT`. Each message is acknowledged; how it was understood
// is printed, a line per message.
globalThis.WebSocket ??= class {};
const { Hl7Server } = require('@medplum/hl7');

const server = new Hl7Server((connection) => {
  connection.addEventListener('message', ({ message }) => {
    const field = (segment, number) => segment?.getField(number)?.toString() ?? '';
    const observations = message.getAllSegments('OBX').map((segment) => ({
      code: segment.getField(3).getComponent(1),
      value: field(segment, 5),
      units: field(segment, 6),
      status: field(segment, 11),
    }));
    const header = message.getSegment('MSH');
    const told = { kind: field(header, 9), control: field(header, 10), specimen: field(message.getSegment('SPM'), 2), observations };
    console.log(JSON.stringify({ ...told, signer: field(message.getSegment('OBR'), 32) }));
    connection.send(message.buildAck());
  });
  connection.addEventListener('error', ({ error }) => console.log(JSON.stringify({ error: error.message })));
});
server.start(Number(process.argv[2])).then(() => console.log('listening'));
