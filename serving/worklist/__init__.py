"""What people work through: the list of reports, what they say to each other about one, and who looks at one now. It imports
the contract and the record of reports."""
