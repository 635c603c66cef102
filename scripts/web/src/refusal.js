/** What a user gave that cannot be labeled; its message is a sentence for them. */
export class Refusal extends Error {}
