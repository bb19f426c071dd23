// Every error a user can meet. One base class; a message says what, expected, got, and what to do next.

export class DigsegError extends Error {
  get name() { return this.constructor.name; }
}

// What was asked for does not exist or does not fit: an option, a backend, a size.
export class UsageError extends DigsegError {}

// A picture or prompt that cannot be used.
export class InputError extends DigsegError {}

// A bundle that is incomplete, damaged, or of another format version.
export class BundleError extends DigsegError {}

// A backend that cannot run here, answers wrongly, or broke while running.
export class BackendError extends DigsegError {}

// The first line of whatever was thrown.
export const inOneLine = (error) => String(error?.message ?? error).trim().split("\n")[0].slice(0, 300) || "no reason given";

export const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

// A text in quotes, cut where it is long.
export const quoted = (text, most = 60) => JSON.stringify(text.length > most ? `${text.slice(0, most - 3)}...` : text);
