"""A differential in the forms that others read: FHIR, HL7 and PDF. It imports `contract` and
`wbc_model.core`."""
