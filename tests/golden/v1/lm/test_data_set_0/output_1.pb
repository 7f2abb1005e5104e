
BprobabilitiesJ(†9[0®8è}‘8ñY8Ã9Th?h§„9ÈÅ>E<Ÿ[Ä;